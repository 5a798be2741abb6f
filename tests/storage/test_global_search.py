"""Search across users against brute force: with an index, without one, and with one that does not serve."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql

from db import global_search
from db.ann_catalog import GLOBAL_NAME
from db.errors import ReplyTooLarge
from db.global_search import GlobalAnswer, NearestOfAll, search_all_users
from db.memory import View
from db.pool import Database
from db.search_plan import Plan, SearchTuning
from db.vectors import normalize, to_parameter
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import (
    DIMENSIONS,
    embedding_of,
    hard_delete,
    new_memory,
    random_vector,
    soft_delete,
    store,
    unit,
)

USERS = 40
EACH = 50

Key = tuple[str, UUID]


class Population:
    """Memories of many users, and what is nearest among them."""

    def __init__(self, database: Database) -> None:
        self.vectors: dict[Key, NDArray[np.float64]] = {}
        generator = np.random.default_rng(1)
        for user in range(USERS):
            owner = f"user-{user:02}"
            memories = [new_memory(embedding=normalize(generator.normal(size=DIMENSIONS))) for _ in range(EACH)]
            store(database, owner, *memories)
            for memory in memories:
                self.vectors[owner, memory.id] = embedding_of(memory).unit.astype(np.float64)

    def nearest(self, query: NDArray[np.float32], limit: int) -> list[tuple[Key, float]]:
        """Returns the keys and scores of the nearest, best first."""
        unit_query = normalize(query).unit.astype(np.float64)
        lengths = np.linalg.norm(unit_query)
        scores = {
            key: float(unit_query @ vector / lengths / np.linalg.norm(vector)) for key, vector in self.vectors.items()
        }
        return sorted(scores.items(), key=lambda item: -item[1])[:limit]


@pytest.fixture(scope="module")
def population(database: Database) -> Population:
    """What the module's database holds."""
    population = Population(database)
    database.write(database.call(), lambda conn: conn.execute("VACUUM (ANALYZE) memory_entries"), user_id=ACROSS_USERS)
    return population


def create_index(url: str, method: str, *, lists: int = 20) -> None:
    """Builds the index as maintenance does; of IVFFlat's lists, a search reads 10 unless told otherwise."""
    command = sql.SQL(
        "CREATE INDEX {} ON memory_entries USING {} (embedding halfvec_cosine_ops) WITH ({}) WHERE deleted_at IS NULL"
    )
    parameters = sql.SQL("m = 16" if method == "hnsw" else f"lists = {lists}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(command.format(sql.Identifier(GLOBAL_NAME), sql.Identifier(method), parameters))


def drop_index(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(GLOBAL_NAME)))


@pytest.fixture(params=["none", "hnsw", "ivfflat", "invalid"])
def index(request: pytest.FixtureRequest, module_database_url: str, population: Population) -> Iterator[str]:
    """The index across users: there is none, one of either method, or one whose build broke off."""
    assert population.vectors
    if request.param != "none":
        create_index(module_database_url, "ivfflat" if request.param == "ivfflat" else "hnsw")
    if request.param == "invalid":
        with psycopg.connect(module_database_url, autocommit=True) as connection:
            connection.execute(
                "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)", [GLOBAL_NAME]
            )
    yield request.param
    drop_index(module_database_url)


def find(database: Database, query: NDArray[np.float32], **wanted: Any) -> GlobalAnswer:
    nearest = NearestOfAll(embedding=normalize(query), **{"limit": 10, **wanted})
    return database.read(
        database.call(), lambda conn: search_all_users(conn, nearest, SearchTuning()), user_id=ACROSS_USERS
    )


def test_it_finds_what_brute_force_finds(database: Database, population: Population, index: str) -> None:
    found, true = 0, 0
    for seed in range(30):
        limit = 1 + seed
        # Random directions have no lists to speak of: an IVFFlat index is told to read most of them.
        answer = find(database, query := random_vector(seed), limit=limit, ef_search=150)
        expected = population.nearest(query, limit)
        assert answer.plan is (Plan.ANN if index in {"hnsw", "ivfflat"} else Plan.EXACT)
        assert len(answer.hits) == limit
        scores = [hit.score for hit in answer.hits]
        assert scores == sorted(scores, reverse=True)
        for hit in answer.hits:
            vector = population.vectors[hit.memory.user_id, hit.memory.id]
            query_unit = normalize(query).unit.astype(np.float64)
            cosine = query_unit @ vector / np.linalg.norm(query_unit) / np.linalg.norm(vector)
            assert hit.score == pytest.approx(cosine, abs=5e-6)
        keys = {(hit.memory.user_id, hit.memory.id) for hit in answer.hits}
        found += len(keys & {key for key, _ in expected})
        true += limit
        if answer.plan is Plan.EXACT:
            assert scores == pytest.approx([score for _, score in expected], abs=5e-6)
    assert found / true > (0.999 if index not in {"hnsw", "ivfflat"} else 0.95)


@pytest.mark.parametrize("index", ["hnsw", "ivfflat"], indirect=True)
def test_the_index_is_what_postgresql_walks(database: Database, index: str) -> None:
    parameters = {"unit": to_parameter(normalize(random_vector(1))), "limit": 10}
    statement = b"EXPLAIN " + global_search.WALK.encode()
    lines = database.read(
        database.call(), lambda conn: conn.execute(statement, parameters).fetchall(), user_id=ACROSS_USERS
    )
    plan = "\n".join(line for (line,) in lines)
    assert GLOBAL_NAME in plan, f"{index}:\n{plan}"


def test_a_larger_ef_search_finds_more(database: Database, population: Population, module_database_url: str) -> None:
    create_index(module_database_url, "ivfflat", lists=40)
    recalls = [recall(database, population, ef_search=depth) for depth in (10, 1_000)]
    drop_index(module_database_url)
    assert recalls[0] < recalls[1] == 1.0


def recall(database: Database, population: Population, **wanted: Any) -> float:
    hits = 0
    for seed in range(20):
        answer = find(database, query := random_vector(seed), **wanted)
        expected = {key for key, _ in population.nearest(query, 10)}
        hits += len(expected & {(hit.memory.user_id, hit.memory.id) for hit in answer.hits})
    return hits / 200


def test_threshold_and_limit_beyond_all_there_is(database: Database, population: Population, index: str) -> None:
    query = random_vector(7)
    everything = population.nearest(query, 10_000)
    answer = find(database, query, limit=1_000)
    assert len(answer.hits) == 1_000
    threshold = everything[5][1] - 1e-5
    answer = find(database, query, limit=1_000, min_score=threshold)
    assert all(hit.score >= threshold for hit in answer.hits)
    assert len(answer.hits) == 6, index
    assert find(database, query, min_score=1.5).hits == []


@pytest.fixture
def few_url(new_database: NewDatabase) -> str:
    """The URL of `few`."""
    return new_database()


@pytest.fixture
def few(few_url: str, open_database: OpenDatabase) -> Database:
    """An empty database of the test's own."""
    return open_database(few_url)


def test_an_empty_store_has_nothing(few: Database) -> None:
    assert find(few, random_vector(1)) == GlobalAnswer([], Plan.EXACT)


@pytest.mark.parametrize("indexed", [False, True])
def test_deleted_memories_are_not_found(few: Database, few_url: str, *, indexed: bool) -> None:
    if indexed:
        create_index(few_url, "hnsw")
    memories = [new_memory(embedding=unit(0)) for _ in range(6)]
    store(few, "a", *memories[:3])
    store(few, "b", *memories[3:])
    soft_delete(few, "a", memories[0].id)
    hard_delete(few, "b", memories[3].id)
    for limit in (2, 4, 10):
        answer = find(few, random_vector(1), limit=limit)
        left = {("a", memories[1].id), ("a", memories[2].id), ("b", memories[4].id), ("b", memories[5].id)}
        keys = {(hit.memory.user_id, hit.memory.id) for hit in answer.hits}
        assert keys <= left
        assert len(keys) == min(limit, 4)


def test_the_same_id_of_two_users_is_two_memories(few: Database) -> None:
    shared = uuid4()
    store(few, "b", new_memory(id=shared, embedding=unit(0), content="of b"))
    store(few, "a", new_memory(id=shared, embedding=unit(0), content="of a"))
    store(few, "a", new_memory(embedding=unit(1)))
    hits = find(few, np.eye(DIMENSIONS, dtype=np.float32)[0], limit=2).hits
    assert [(hit.memory.user_id, hit.memory.content, hit.score) for hit in hits] == [
        ("a", "of a", 1.0),
        ("b", "of b", 1.0),
    ]


def test_view_and_text_limit(few: Database) -> None:
    for owner in ("a", "b", "c"):
        store(few, owner, new_memory(content="x" * 100, summary="", metadata={}))
    for view in View:
        hit, *_ = find(few, random_vector(1), view=view).hits
        assert hit.memory.content == (None if view is View.HEAD else "x" * 100)
        assert (hit.memory.embedding is None) is (view is not View.FULL)
    assert len(find(few, random_vector(1), max_text_bytes=306).hits) == 3
    with pytest.raises(ReplyTooLarge, match="the 3 results take 306 bytes, a reply at most 305"):
        find(few, random_vector(1), max_text_bytes=305)
    assert len(find(few, random_vector(1), max_text_bytes=204, limit=2).hits) == 2
    assert len(find(few, random_vector(1), max_text_bytes=1, view=View.HEAD).hits) == 3


def test_embeddings_too_long_for_an_index_are_compared(new_database: NewDatabase, open_database: OpenDatabase) -> None:
    dimensions = 4_100
    database = open_database(new_database(dimensions=dimensions))
    vectors = [random_vector(seed, dimensions=dimensions) for seed in range(6)]
    for seed, vector in enumerate(vectors):
        store(database, f"user-{seed}", new_memory(embedding=normalize(vector)))
    answer = find(database, vectors[3], limit=1)
    assert answer.plan is Plan.EXACT
    assert [hit.memory.user_id for hit in answer.hits] == ["user-3"]
    assert answer.hits[0].score == pytest.approx(1.0, abs=1e-6)
