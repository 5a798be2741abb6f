"""What the catalogs tell of approximate indexes: their states, sizes and owners, and what others left."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from db import ann_indexes
from db.ann_catalog import GLOBAL_NAME, IndexState, list_indexes, name_of, progress, wanted_users
from db.ann_session import AnnSession
from db.errors import DatabaseError
from tests.fix_database import NewDatabase
from tests.storage import clustered
from tests.storage.clustered import DIMENSIONS, blueprint, indexes_of
from tests.storage.concurrency import Activity, wait_for


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database with a user of 300 memories."""
    url = new_database(dimensions=DIMENSIONS)
    clustered.store(url, "owner", clustered.clustered(300))
    return url


@pytest.fixture
def session(url: str) -> Iterator[AnnSession]:
    with AnnSession(url) as session:
        yield session


def test_names_are_short_and_differ_by_user() -> None:
    names = {name_of(user_id) for user_id in ("a", "b", "A", "é", "\u0065\u0301", "a" * 255)}
    assert len(names) == 6
    assert all(len(name) == len("memory_ann_0123456789abcdef") for name in names)


def test_a_ready_index(url: str, session: AnnSession) -> None:
    clustered.wish(url, "owner")
    ann_indexes.create(session, blueprint("owner", hnsw_m=8, hnsw_ef_construction=32))
    index = indexes_of(url)[name_of("owner")]
    assert (index.user_id, index.method, index.state) == ("owner", "hnsw", IndexState.READY)
    assert (index.entries, index.scans, index.options) == (300, 0, {"m": 8, "ef_construction": 32})
    assert index.bytes > 300 * 2 * DIMENSIONS
    assert not index.is_leftover
    assert not index.is_global


@pytest.mark.parametrize(("lists", "expected"), [(0, 1), (7, 7)])
def test_ivfflat_gets_its_lists(url: str, session: AnnSession, lists: int, expected: int) -> None:
    ann_indexes.create(session, blueprint("owner", rows=300, method="ivfflat", ivfflat_lists=lists))
    index = indexes_of(url)[name_of("owner")]
    assert (index.method, index.options, index.user_id) == ("ivfflat", {"lists": expected}, None)


def test_the_index_across_users(url: str, session: AnnSession) -> None:
    clustered.store(url, "another", clustered.clustered(50, seed=2))
    ann_indexes.create(session, blueprint(None, name=GLOBAL_NAME))
    index = indexes_of(url)[GLOBAL_NAME]
    assert index.is_global
    assert (index.entries, index.user_id) == (350, None)


def test_an_index_is_building_until_its_build_breaks_off(url: str, session: AnnSession) -> None:
    with psycopg.connect(url) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute("DELETE FROM memory_entries WHERE user_id = 'nobody'")  # its lock keeps the build waiting
        build = threads.submit(ann_indexes.create, session, blueprint("owner"))
        wait_for(lambda: name_of("owner") in indexes_of(url))
        assert indexes_of(url)[name_of("owner")].state is IndexState.BUILDING
        with AnnSession(url) as onlooker:
            seen = onlooker.query(progress)
        assert seen is not None
        assert seen.phase == "waiting for writers before build"
        session.cancel()
        with pytest.raises(DatabaseError):
            build.result()
    assert indexes_of(url)[name_of("owner")].state is IndexState.INVALID
    assert session.query(progress) is None


def test_what_reindex_left_is_seen(url: str, session: AnnSession) -> None:
    ann_indexes.create(session, blueprint("owner"))
    with psycopg.connect(url) as writer, psycopg.connect(url, autocommit=True) as operator:
        writer.execute("DELETE FROM memory_entries WHERE user_id = 'nobody'")
        operator.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            operator.execute(f"REINDEX INDEX CONCURRENTLY {name_of('owner')}".encode())
    found = indexes_of(url)
    leftover = found.pop(f"{name_of('owner')}_ccnew")
    assert (leftover.is_leftover, leftover.state, leftover.base_name) == (True, IndexState.INVALID, name_of("owner"))
    assert [index.state for index in found.values()] == [IndexState.READY]


def test_a_reindex_by_hand_counts_as_building(
    url: str, session: AnnSession, activity_of: Callable[[str], Activity]
) -> None:
    ann_indexes.create(session, blueprint("owner"))
    statement = f"/* by.hand */ REINDEX INDEX CONCURRENTLY {name_of('owner')}".encode()
    with (
        psycopg.connect(url) as writer,
        psycopg.connect(url, autocommit=True) as operator,
        ThreadPoolExecutor(1) as threads,
    ):
        writer.execute("DELETE FROM memory_entries WHERE user_id = 'nobody'")
        reindex = threads.submit(operator.execute, statement)
        activity_of(url).wait_until_blocked("by.hand")
        states = {name: index.state for name, index in indexes_of(url).items()}
        writer.rollback()
        reindex.result()
    assert states == {name_of("owner"): IndexState.READY, f"{name_of('owner')}_ccnew": IndexState.BUILDING}


def test_foreign_indexes_are_none_of_ours(url: str, session: AnnSession) -> None:
    with psycopg.connect(url, autocommit=True) as operator:
        for name in ("memory_annx", "memory_ann_mine", f"{name_of('owner')}x", f"x{name_of('owner')}"):
            operator.execute(f"CREATE INDEX {name} ON memory_entries (importance)".encode())
        operator.execute("CREATE TABLE other (embedding halfvec(3))")
        operator.execute(f"CREATE INDEX {name_of('owner')} ON other USING hnsw (embedding halfvec_l2_ops)".encode())
    assert session.query(list_indexes) == []


def test_scans_are_counted(url: str, session: AnnSession) -> None:
    ann_indexes.create(session, blueprint("owner"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET enable_sort = off")
        query = "[" + ",".join(["1"] * DIMENSIONS) + "]"
        connection.execute(
            "SELECT id FROM memory_entries WHERE user_id = 'owner' AND deleted_at IS NULL "
            "ORDER BY embedding <=> %s::halfvec LIMIT 5",
            [query],
        )
    wait_for(lambda: indexes_of(url)[name_of("owner")].scans == 1)


def test_wishes_are_kept_once(url: str, session: AnnSession) -> None:
    clustered.wish(url, "b", "a", "b")
    assert session.query(wanted_users) == ["a", "b"]
    session.query(lambda conn: ann_indexes.forget(conn, "b"))
    assert session.query(wanted_users) == ["a"]
