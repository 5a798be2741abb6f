"""PostgreSQL's programs are run beside gRPC, whose handlers for fork may wait for ever while calls are under way."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from db.embedded import account
from db.embedded.programs import Programs, find_installation

# glibc keeps handlers until the process ends, so this is one of its own.
INITDB_WATCHED = """
import ctypes, sys
from pathlib import Path
from db.embedded import account
from db.embedded.programs import Programs, find_installation

forks = []
handler = ctypes.CFUNCTYPE(None)(lambda: forks.append("fork"))
ctypes.CDLL(None).__register_atfork(handler, None, None, None)
folder = Path(sys.argv[1])
Programs(find_installation(), account.choose(folder)).initdb(folder)
print(len(forks))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cluster = tmp_path / "cluster"
    cluster.mkdir(mode=0o700)
    owner = account.choose(cluster)
    account.let_reach(owner, cluster)
    os.chown(cluster, owner.uid, owner.gid)
    return cluster


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "__register_atfork"), reason="glibc alone tells of forks so")
def test_they_are_run_without_a_fork(folder: Path) -> None:
    command = [sys.executable, "-c", INITDB_WATCHED, str(folder)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.stdout.strip(), ended.stderr) == ("0", "")
    assert (folder / "PG_VERSION").stat().st_uid == folder.stat().st_uid


def test_they_keep_nothing_of_root(folder: Path) -> None:
    owner = account.choose(folder)
    Programs(find_installation(), owner).initdb(folder)
    made = {path.stat().st_gid for path in folder.iterdir()}
    assert made == {owner.gid}
