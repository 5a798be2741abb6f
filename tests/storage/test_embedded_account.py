"""The account of the embedded PostgreSQL and the files it must reach; only root chooses one."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from db.embedded import EmbeddedPostgresError, account

IS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not IS_ROOT, reason="only root may choose another account")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def nobody() -> account.Account:
    entry = pwd.getpwnam("nobody")
    return account.Account(entry.pw_uid, entry.pw_gid)


@pytest.mark.skipif(IS_ROOT, reason="root runs it under another account")
def test_an_ordinary_user_runs_it_as_himself(tmp_path: Path) -> None:
    assert account.choose(tmp_path).uid == os.geteuid()
    assert not account.choose(tmp_path).is_other


@only_root
def test_root_takes_the_innermost_owner_and_else_the_services_account(tmp_path: Path, nobody: account.Account) -> None:
    cluster = tmp_path / "postgres"
    assert account.choose(cluster, tmp_path).uid == pwd.getpwnam("pgserver").pw_uid
    os.chown(tmp_path, nobody.uid, nobody.gid)
    assert account.choose(cluster, tmp_path) == nobody
    cluster.mkdir()
    os.chown(cluster, 12_345, 12_345)
    assert account.choose(cluster, tmp_path) == account.Account(12_345, 12_345)


@only_root
def test_without_a_way_to_make_the_account_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "ACCOUNT_FOR_ROOT", "no-such-account")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match=r"could not be created; .*useradd --system .*no-such-account"):
        account.choose(tmp_path)


@only_root
def test_folders_on_the_way_are_opened_for_passing_and_no_more(tmp_path: Path, nobody: account.Account) -> None:
    closed, open_enough = tmp_path / "closed", tmp_path / "closed" / "open"
    open_enough.mkdir(parents=True)
    closed.chmod(0o700)
    open_enough.chmod(0o751)
    account.let_reach(nobody, open_enough / "data")
    assert mode(closed) == 0o701
    assert mode(open_enough) == 0o751


@only_root
def test_programs_installed_under_a_strict_umask_are_opened(tmp_path: Path, nobody: account.Account) -> None:
    program, library = tmp_path / "bin" / "postgres", tmp_path / "lib" / "vector.so"
    for path, permissions in ((program, 0o700), (library, 0o600)):
        path.parent.mkdir(mode=0o700)
        path.touch()
        path.chmod(permissions)
    account.let_execute(nobody, tmp_path)
    assert (mode(program), mode(program.parent)) == (0o705, 0o705)
    assert (mode(library), mode(library.parent)) == (0o604, 0o705)
