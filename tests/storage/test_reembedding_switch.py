"""The switch of a move to another model: what searches find afterwards, what is left to the queue, and the way back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.rows import dict_row

from db import embedding_jobs, reembedding_indexes, search_statements
from db.ann_catalog import GLOBAL_NAME, IndexState, name_of
from db.ann_catalog import NEW as NEW_ONE
from db.ann_indexes import create, drop
from db.ann_policy import AnnPolicy, UserRows, steps
from db.ann_registry import AnnIndex
from db.ann_session import AnnLock, AnnSession
from db.connection import Connection
from db.embedding_queue_state import list_failed, read_counts
from db.errors import Conflict, ReembeddingBehind, ReembeddingConflict
from db.filters import Filter
from db.memory import EmbeddingState, View
from db.pool import Database
from db.reembedding import Phase
from db.schema import EmbeddingSpace, read_facts
from db.search import Answer, Means, Nearest, search
from db.search_plan import Coarse, Plan, SearchTuning, coarse_of
from db.search_statements import Metric, shape_of
from db.update import Changes, update
from db.vectors import to_parameter
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.clustered import blueprint, indexes_of, wish
from tests.storage.conftest import OpenDatabase
from tests.storage.reembedding_calls import (
    NEW,
    OLD,
    batch_after,
    begin,
    build,
    clean_up,
    columns_of,
    embedding_of,
    memory_of,
    move,
    reconnect,
    run_round,
    state,
    store_batch,
    switch,
)
from tests.storage.sample_memories import LATER, NOW, new_memory, read, rows, soft_delete, store, unit

OWNER = "owner"
WIDE = EmbeddingSpace("wide-model", 768)
"""Of as many dimensions as have their signs beside them."""
TEXTS = [f"memory {number}" for number in range(260)]
QUERIES = ["a question", "another one", "memory 7"]


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database of the test's own: a move is of all of it."""
    return new_database()


@pytest.fixture
def database(url: str, open_database: OpenDatabase) -> Database:
    return open_database(url, max_size=1)  # after a switch one attempt is in vain


def fill(database: Database, *texts: str, user_id: str = OWNER, space: EmbeddingSpace = OLD) -> None:
    store(database, user_id, *(memory_of(text, space) for text in texts))


def nearest_to(text: str, space: EmbeddingSpace, **options: Any) -> Nearest:
    fields: dict[str, Any] = {"limit": 10, "filter": Filter(), "metric": Metric.COSINE}
    return Nearest(embedding=embedding_of(text, space), **(fields | options))


def find(database: Database, text: str, space: EmbeddingSpace, *, ann: bool = False, **options: Any) -> Answer:
    means = Means(
        coarse=coarse_of(space.dimensions),
        ann=AnnIndex(name_of(OWNER), "hnsw", 0) if ann else None,
        user_rows=10_000,
        tuning=SearchTuning(),
    )
    nearest = nearest_to(text, space, **options)
    return database.read(database.call(), lambda conn: search(conn, OWNER, nearest, means), user_id=OWNER)


def require_exact(database: Database, space: EmbeddingSpace, texts: list[str]) -> None:
    """Checks the exact top 10 of some questions against numpy."""
    units = np.stack([embedding_of(text, space).unit for text in texts]).astype(np.float64)
    for query in QUERIES:
        similarities = units @ embedding_of(query, space).unit.astype(np.float64) / np.linalg.norm(units, axis=1)
        expected = [texts[position] for position in np.argsort(-similarities)[:10]]
        for exact in (True, False):
            answer = find(database, query, space, exact=exact)
            assert [hit.memory.content for hit in answer.hits] == expected


def memories(url: str) -> list[dict[str, Any]]:
    """Returns all there is about each memory, but for what a move adds."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        found = connection.execute("SELECT * FROM memory_entries ORDER BY id").fetchall()
    return [{name: value for name, value in row.items() if not name.startswith("standby_")} for row in found]


def indexes_used(database: Database, statement: bytes, parameters: dict[str, Any]) -> set[str]:
    def explain(conn: Connection) -> Any:
        with conn.transaction():
            conn.execute("SET LOCAL enable_sort = off")  # so few memories are better sorted
            return conn.execute(b"EXPLAIN (FORMAT JSON) " + statement, parameters).fetchone()

    [plans] = database.read(database.call(), explain, user_id=OWNER)
    return set(_names(plans[0]["Plan"]))


def _names(node: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in node:
        yield node["Index Name"]
    for child in node.get("Plans", []):
        yield from _names(child)


def parameters_of(space: EmbeddingSpace) -> tuple[search_statements.Shape, dict[str, Any]]:
    compiled = Filter().compiled()
    shape = shape_of(Metric.COSINE, View.BASIC, compiled, exclude=False)
    embedding = embedding_of("a question", space)
    values = {"user_id": OWNER, "unit": to_parameter(embedding), "norm": 1.0, "exclude": None, "limit": 10}
    more = {"walk": 10, "candidates": 10, "min_score": -1.0, "max_text_bytes": 2**40}
    return shape, compiled.parameters | values | more


def test_to_more_dimensions_and_back(database: Database, url: str) -> None:
    fill(database, *TEXTS)
    deleted = rows(database, b"SELECT id FROM memory_entries WHERE content = 'memory 7'")[0][0]
    soft_delete(database, OWNER, deleted)
    live = [text for text in TEXTS if text != "memory 7"]
    require_exact(database, OLD, live)
    before = memories(url)

    outcome = move(database, url, WIDE)
    assert (outcome.live, outcome.pending, outcome.refused) == (WIDE, 0, 0)
    under_way = state(database)
    assert under_way is not None
    assert (under_way.phase, under_way.live, under_way.standby) == (Phase.SWITCHED, WIDE, OLD)
    assert (under_way.live_embedder, under_way.embedder, under_way.switched_at) == ("openai", "local", LATER)
    with psycopg.connect(url) as connection:
        assert read_facts(connection).space == WIDE
    require_exact(database, WIDE, live)
    assert find(database, "a question", WIDE).plan is Plan.QUANTIZED
    shape, parameters = parameters_of(WIDE)
    used = indexes_used(database, search_statements.candidates(shape, Coarse.SIGNS), parameters)
    assert reembedding_indexes.SEARCH in used
    wrong = b"SELECT FROM memory_entries WHERE bits IS DISTINCT FROM binary_quantize(embedding)::bit(768)"
    assert rows(database, wrong) == []
    assert {memory["embedding_model"] for memory in memories(url)} == {WIDE.model}

    back = switch(url)
    assert (back.live, back.pending) == (OLD, 0)
    assert memories(url) == before
    require_exact(database, OLD, live)
    shape, parameters = parameters_of(OLD)
    used = indexes_used(database, search_statements.candidates(shape, Coarse.EMBEDDING), parameters)
    assert reembedding_indexes.SEARCH in used
    clean_up(url)
    assert state(database) is None
    assert memories(url) == before


def test_what_is_left_to_the_queue(database: Database, url: str) -> None:
    fill(database, "embedded", "changed")
    begin(database)
    run_round(database)
    build(url)
    [(changed,)] = rows(database, b"SELECT id FROM memory_entries WHERE content = 'changed'")
    database.write(
        database.call(),
        lambda conn: update(
            conn,
            OWNER,
            changed,
            Changes(content="changed since", embedding=unit(), embedding_model="caller"),
            etag="",
            now=NOW,
            check_metadata=lambda _: None,
        ),
        user_id=OWNER,
    )
    fill(database, "added")
    waiting = new_memory(content="waiting", embed_text="what is embedded", embedding=None, embedding_model=OLD.model)
    store(database, OWNER, waiting)
    with pytest.raises(ReembeddingBehind):
        switch(url, max_pending=2)

    assert switch(url, max_pending=3).pending == 3
    reconnect(database)
    found = dict(rows(database, b"SELECT content, embedding IS NULL FROM memory_entries"))
    assert found == {"embedded": False, "changed since": True, "added": True, "waiting": True}
    assert read(database, OWNER, changed).embedding_state is EmbeddingState.PENDING
    assert [hit.memory.content for hit in find(database, "changed since", NEW).hits] == ["embedded"]

    jobs = database.write(
        database.call(),
        lambda conn: embedding_jobs.take(conn, now=LATER, leased_until=LATER, limit=10),
        user_id=ACROSS_USERS,
    )
    assert {job.text for job in jobs} == {"added", "changed since", "what is embedded"}
    embeddings = [embedding_of(job.text, NEW) for job in jobs]
    database.write(
        database.call(),
        lambda conn: embedding_jobs.complete(conn, jobs, embeddings, model=NEW.model),
        user_id=ACROSS_USERS,
    )
    [best, *_] = find(database, "changed since", NEW).hits
    assert (best.memory.content, round(best.score, 3)) == ("changed since", 1.0)

    # On the way back: what the old model had embedded by then is right, what it never saw waits.
    assert switch(url, max_pending=1).pending == 1
    assert rows(database, b"SELECT content FROM memory_entries WHERE embedding IS NULL") == [("waiting",)]
    assert read(database, OWNER, changed).embedding_model == "caller"


def test_what_a_model_refused(database: Database, url: str) -> None:
    refused_by_both = new_memory(content="! both", embedding=None, embedding_model=OLD.model)
    refused_by_old = new_memory(content="new only", embedding=None, embedding_model=OLD.model)
    store(database, OWNER, refused_by_both, refused_by_old, memory_of("! old only", OLD))
    for job in database.write(
        database.call(),
        lambda conn: embedding_jobs.take(conn, now=NOW, leased_until=LATER, limit=10),
        user_id=ACROSS_USERS,
    ):
        give_up(database, job)
    outcome = move(database, url)
    assert (outcome.pending, outcome.refused) == (0, 2)
    failed = database.read(
        database.call(), lambda conn: list_failed(conn, user_id=None, limit=10), user_id=ACROSS_USERS
    )
    assert {(one.error, one.failed_at) for one in failed} == {("nothing to embed", LATER)}
    assert len(failed) == 2
    assert read(database, OWNER, refused_by_both.id).embedding_state is EmbeddingState.FAILED
    assert read(database, OWNER, refused_by_old.id).embedding_state is EmbeddingState.READY

    assert switch(url).refused == 2
    failed_before = {
        content
        for (content,) in rows(database, b"SELECT content FROM memory_entries WHERE embedding_error = 'too odd'")
    }
    assert failed_before == {"! both", "new only"}
    counts = database.read(database.call(), read_counts, user_id=ACROSS_USERS)
    assert (counts.pending, counts.failed) == (0, 2)


def give_up(database: Database, job: embedding_jobs.EmbeddingJob) -> None:
    database.write(
        database.call(),
        lambda conn: embedding_jobs.give_up(conn, job, error="too odd", now=NOW),
        user_id=ACROSS_USERS,
    )


def test_what_was_written_after_the_switch_is_caught_up_with_before_going_back(database: Database, url: str) -> None:
    fill(database, "first")
    move(database, url)
    fill(database, "second", space=NEW)
    with pytest.raises(ReembeddingBehind):
        switch(url)
    assert begin(database, OLD, embedder="local") == begin(database) == state(database)
    assert [one.text for one in batch_after(database)] == ["second"]
    assert run_round(database, OLD) == 1
    assert switch(url).pending == 0
    require_exact(database, OLD, ["first", "second"])
    # And once more in the new direction, with what it had.
    assert switch(url).pending == 0
    require_exact(database, NEW, ["first", "second"])


def test_approximate_indexes_are_there_at_once(database: Database, url: str) -> None:
    fill(database, *TEXTS)
    wish(url, OWNER)
    with AnnSession(url) as session:
        create(session, blueprint(OWNER, hnsw_m=8, hnsw_ef_construction=64))
        create(session, blueprint(None, name=GLOBAL_NAME, method="ivfflat", ivfflat_lists=3))
        create(session, blueprint(OWNER, name=name_of(OWNER) + NEW_ONE))  # an interrupted replacement
    begin(database, WIDE)
    run_round(database, WIDE)
    seen: list[tuple[str, float]] = []
    build(url, lambda name, share: seen.append((name, share)))
    named = {name for name, share in seen if share == 1.0}
    assert {name_of(OWNER) + "_standby", GLOBAL_NAME + "_standby", "memory_entries_search_standby"} <= named
    assert all(0.0 <= share <= 1.0 for _, share in seen)
    # Maintenance sees the live ones only, and nothing to do about them.
    policy = AnnPolicy(options=blueprint(OWNER).options, min_rows=10, drop_rows=5)
    there = [index for index in indexes_of(url).values() if not index.is_global and not index.is_leftover]
    assert steps(there, {OWNER: UserRows(len(TEXTS), len(TEXTS))}, len(TEXTS), policy) == []

    switch(url)
    after = indexes_of(url)
    assert after.keys() == {name_of(OWNER), GLOBAL_NAME}
    assert {index.state for index in after.values()} == {IndexState.READY}
    assert after[name_of(OWNER)].options == {"m": 8, "ef_construction": 64}
    assert (after[GLOBAL_NAME].method, after[GLOBAL_NAME].options) == ("ivfflat", {"lists": 3})
    assert find(database, "a question", WIDE, ann=True).plan is Plan.ANN
    clean_up(url)
    assert indexes_of(url).keys() == {name_of(OWNER), GLOBAL_NAME}
    with AnnSession(url) as session:
        drop(session, GLOBAL_NAME)  # which might serve as well
    shape, parameters = parameters_of(WIDE)
    assert name_of(OWNER) in indexes_used(database, search_statements.ann(shape, OWNER), parameters)


def test_an_interrupted_build_is_repeated(database: Database, url: str) -> None:
    fill(database, "one")
    begin(database)
    run_round(database)
    build(url)
    with psycopg.connect(url) as superuser:
        superuser.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memory_entries_search_standby'::regclass"
        )
    with pytest.raises(ReembeddingConflict, match="memory_entries_search_standby are missing or invalid"):
        switch(url)
    with AnnSession(url) as other:
        assert other.try_lock(AnnLock.WORK)
        with pytest.raises(Conflict, match="an index is being built"):
            switch(url, lock_timeout_s=0.1)
    seen: set[str] = set()
    build(url, lambda name, _: seen.add(name))
    assert "memory_entries_search_standby" in seen
    assert "memory_entries_unembedded" not in seen
    assert switch(url).pending == 0


def test_a_switch_gives_up_where_it_would_wait(database: Database, url: str) -> None:
    fill(database, "one")
    begin(database)
    run_round(database)
    build(url)
    before = memories(url)
    with psycopg.connect(url) as other:
        other.execute("SELECT FROM memory_entries")
        with pytest.raises(Conflict, match=r"in the way for 0\.2 s"):
            switch(url, lock_timeout_s=0.2)
        assert memories(url) == before
    assert database.read(database.call(), lambda conn: conn.space, user_id=OWNER) == OLD
    under_way = state(database)
    assert under_way is not None
    assert under_way.phase is Phase.BACKFILL
    assert switch(url).terminated >= 1


def test_a_cancelled_move_leaves_nothing(database: Database, url: str) -> None:
    fill(database, "one", "two")
    with psycopg.connect(url) as operator:
        operator.execute("CREATE INDEX their_own_standby ON memory_entries (user_id, updated_at)")
    columns, before, indexes = columns_of(url), memories(url), schema(url)[2]
    begin(database, WIDE)
    store_batch(database, batch_after(database, limit=1), WIDE)
    build(url)
    clean_up(url)
    assert (columns_of(url), memories(url), schema(url)[2]) == (columns, before, indexes)
    with pytest.raises(ReembeddingConflict):
        clean_up(url)
    move(database, url)  # another one begins from nothing
    require_exact(database, NEW, ["one", "two"])


# What a database is, whatever the order of its columns.
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), attstorage, attnotnull, attgenerated,
    pg_get_expr(adbin, adrelid)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 'memory_entries'::regclass AND attnum > 0 AND NOT attisdropped
"""
CONSTRAINTS = """
SELECT conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint
WHERE conrelid IN ('memory_entries'::regclass, 'embedding_jobs'::regclass, 'reembedding'::regclass)
"""
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"


def schema(url: str) -> list[set[tuple[Any, ...]]]:
    with psycopg.connect(url) as connection:
        return [set(connection.execute(query).fetchall()) for query in (COLUMNS, CONSTRAINTS, INDEXES)]


@pytest.mark.parametrize(("before", "after"), [(8, 768), (768, 8)])
def test_after_cleaning_up_it_is_as_if_it_had_always_been_so(
    new_database: NewDatabase, open_database: OpenDatabase, before: int, after: int
) -> None:
    url = new_database(dimensions=before)
    database = open_database(url)
    source, target = EmbeddingSpace(OLD.model, before), EmbeddingSpace("target", after)
    fill(database, *TEXTS[:5], space=source)
    move(database, url, target)
    clean_up(url)
    fresh = new_database(dimensions=after)
    assert schema(url) == schema(fresh)
    fill(database, "afterwards", space=target)
    require_exact(database, target, [*TEXTS[:5], "afterwards"])
