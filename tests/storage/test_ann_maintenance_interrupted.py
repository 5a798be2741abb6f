"""Maintenance of approximate indexes that breaks off or is refused: nothing is left, and the next round does it."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from db import ann_indexes, ann_maintenance, ann_session, migrate
from db.ann_catalog import IndexState, name_of, progress
from db.ann_indexes import IndexOptions
from db.ann_maintenance import AnnMaintenance
from db.ann_policy import AnnPolicy
from db.ann_session import AnnSession
from db.embedded import EmbeddedPostgres, postmaster
from db.errors import Conflict, DatabaseUnavailable, SchemaMismatch
from db.schema import EmbeddingSpace
from tests.fix_database import FAST, MODEL, NewDatabase
from tests.storage import clustered
from tests.storage.ann_maintenance_calls import SLOW, NewMaintenance, store_users, users_with_index, work
from tests.storage.clustered import DIMENSIONS, Searcher, blueprint, indexes_of, numbered
from tests.storage.concurrency import Activity, wait_for
from tests.storage.conftest import OpenDatabase

QUERIES = clustered.clustered(30, seed=99)


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    return new_database(dimensions=DIMENSIONS)


def test_a_lock_timeout_leaves_nothing_behind(
    url: str, maintenance: NewMaintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann_session, "LOCK_TIMEOUT_S", 1)
    monkeypatch.setattr(ann_maintenance, "FIRST_RETRY_S", 0.5)
    store_users(url, owner=300)
    ours = maintenance(url)
    with psycopg.connect(url) as writer:
        writer.execute("DELETE FROM memory_entries WHERE user_id = 'nobody'")
        assert ours.round()
        assert [index.state for index in indexes_of(url).values()] == [IndexState.INVALID]
        assert not ours.round(), "not even clearing up is possible"
    wait_for(ours.round)
    assert users_with_index(url) == {"owner"}


def test_a_terminated_build_is_repeated(
    url: str, maintenance: NewMaintenance, activity_of: Callable[[str], Activity]
) -> None:
    store_users(url, owner=1_500)
    ours = maintenance(url, options=SLOW)
    with interrupted(ours):
        wait_until_building(url)
        activity_of(url).terminate_others()
    assert [index.state for index in indexes_of(url).values()] == [IndexState.INVALID]
    work(maintenance(url))
    assert users_with_index(url) == {"owner"}


@contextmanager
def interrupted(maintenance: AnnMaintenance) -> Iterator[None]:
    """Runs a round on a thread of its own, which the body is to break off."""
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            maintenance.round()
        except DatabaseUnavailable as error:
            failures.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        maintenance.resign()
    assert len(failures) == 1


def wait_until_building(url: str) -> None:
    def graph_grows() -> bool:
        with AnnSession(url) as onlooker:
            seen = onlooker.query(progress)
        return seen is not None and seen.done > 0

    wait_for(graph_grows)


def test_a_killed_postgresql_finds_the_next_round_clean(
    data_dir: Path, maintenance: NewMaintenance, open_database: OpenDatabase
) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        url = postgres.url
        migrate.upgrade(url, EmbeddingSpace(MODEL, DIMENSIONS))
        vectors = clustered.clustered(1_500)
        clustered.store(url, "owner", vectors)
        clustered.analyze(url)
        clustered.wish(url, "owner")
        with interrupted(maintenance(url, options=SLOW)):
            wait_until_building(url)
            kill_all(data_dir)
        wait_for(lambda: not postgres.is_running())
        postgres.ensure_running()
        assert [index.state for index in indexes_of(url).values()] == [IndexState.INVALID]
        searcher = Searcher(open_database(url), "owner", numbered(vectors))
        assert searcher.recall(QUERIES) == 1.0, "the invalid index is not used"
        work(maintenance(url))
        assert users_with_index(url) == {"owner"}
        assert searcher.recall(QUERIES) >= 0.98


def kill_all(data_dir: Path) -> None:
    """Kills PostgreSQL with all its processes: without a postmaster, a busy one would finish what it does."""
    server = postmaster.find(data_dir / "postgres")
    assert server is not None
    assert server.pid is not None
    parent = psutil.Process(server.pid)
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_full_disk_leaves_nothing_behind(
    data_dir: Path, maintenance: NewMaintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann_maintenance, "FIRST_RETRY_S", 0.5)
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres, small_disk(data_dir, megabytes=1) as disk:
        url = postgres.url
        migrate.upgrade(url, EmbeddingSpace(MODEL, DIMENSIONS))
        store_users(url, owner=4_000, small=300)
        with psycopg.connect(url, autocommit=True) as connection:
            # Where indexes go from now on.
            connection.execute(sql.SQL("CREATE TABLESPACE tiny LOCATION {}").format(str(disk)))
            connection.execute("ALTER DATABASE memory SET default_tablespace = tiny")
        ours = maintenance(url)
        assert ours.round()
        assert [index.state for index in indexes_of(url).values()] == [IndexState.INVALID]
        clustered.store(url, "owner", clustered.clustered(10), first=10_000)
        assert ours.round()
        assert users_with_index(url) == {"small"}, "what fits is built, and what was left is gone"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER DATABASE memory RESET default_tablespace")
        ours.resign()
        wait_for(ours.round)
        assert users_with_index(url) == {"owner", "small"}
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP INDEX {name_of('small')}".encode())
            connection.execute("DROP TABLESPACE tiny")


@contextmanager
def small_disk(data_dir: Path, *, megabytes: int) -> Iterator[Path]:
    """Yields a folder of PostgreSQL's account on a file system of its own."""
    folder = data_dir / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of its own can only be mounted by root")
    try:
        owner = (data_dir / "postgres").stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)  # noqa: S607
        shutil.rmtree(folder)


def test_closing_cancels_a_build(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, owner=1_500)
    ours = maintenance(url, options=SLOW)
    ours.start()
    wait_until_building(url)
    started_at = time.monotonic()
    ours.close()
    assert time.monotonic() - started_at < 2
    assert [index.state for index in indexes_of(url).values()] == [IndexState.INVALID]
    work(maintenance(url))
    assert users_with_index(url) == {"owner"}


def test_closing_does_not_wait_for_locks(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, owner=300)
    with psycopg.connect(url) as writer:
        writer.execute("DELETE FROM memory_entries WHERE user_id = 'nobody'")
        ours = maintenance(url)
        ours.start()
        wait_for(lambda: indexes_of(url))
        started_at = time.monotonic()
        ours.close()
        assert time.monotonic() - started_at < 2


def test_the_thread_outlives_a_lost_connection(
    url: str, monkeypatch: pytest.MonkeyPatch, activity_of: Callable[[str], Activity]
) -> None:
    monkeypatch.setattr(ann_maintenance, "BREATH_S", 0.05)
    rules = AnnPolicy(options=IndexOptions(hnsw_ef_construction=64), min_rows=200, drop_rows=100)
    ours = AnnMaintenance(url, rules, interval_s=0.1)
    ours.start()
    try:
        store_users(url, one=300)
        wait_for(lambda: users_with_index_now(url) == {"one"})
        activity_of(url).terminate_others()
        store_users(url, other=300)
        wait_for(lambda: users_with_index_now(url) == {"one", "other"})
    finally:
        ours.close()


def users_with_index_now(url: str) -> set[str | None]:
    return {index.user_id for index in indexes_of(url).values() if index.state is IndexState.READY}


def test_a_role_that_may_not_build_says_what_is_missing(url: str) -> None:
    store_users(url, owner=300)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE ROLE reader_of_memories")
        admin.execute("GRANT SELECT ON memory_entries TO reader_of_memories")
    try:
        with AnnSession(url) as session:
            session.run(sql.SQL("SET ROLE reader_of_memories"))
            with pytest.raises(SchemaMismatch, match="has to own the table memory_entries"):
                ann_indexes.create(session, blueprint("owner"))
    finally:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("DROP OWNED BY reader_of_memories")
            admin.execute("DROP ROLE reader_of_memories")


def test_a_lock_in_the_way_is_a_conflict(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_session, "LOCK_TIMEOUT_S", 1)
    with psycopg.connect(url) as locker, AnnSession(url) as session:
        locker.execute("LOCK TABLE memory_entries IN SHARE MODE")
        with pytest.raises(Conflict, match="in the way for 1 s"):
            ann_indexes.create(session, blueprint("owner"))
