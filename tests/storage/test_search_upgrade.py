"""The upgrade that gives searches their covering index: over a database in use before, it keeps every memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from db import migrate
from db.filters import Filter
from db.memory import View
from db.schema import EmbeddingSpace
from db.search import Answer, Means, Nearest, search
from db.search_plan import Coarse, Plan, SearchTuning, coarse_of
from db.search_statements import Metric
from db.vectors import normalize, to_parameter
from tests.fix_database import MODEL, Databases
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, random_vector

OWNER = "owner"
ROWS = 90
# As the service of revision 0002 wrote them.
INSERT = """
INSERT INTO memory_entries (
    user_id, id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model, importance,
    version, created_at, updated_at, deleted_at, purge_at)
VALUES (
    %(user_id)s, %(id)s, %(conversation_id)s, %(content)s, '', %(metadata)s, %(embedding)s, %(norm)s, 'test-model',
    %(importance)s, 1, %(created_at)s, %(created_at)s, %(deleted_at)s, %(purge_at)s)
"""


# Columns of revision 0004.
OF_WORDS = {"language", "superseded_by", "embedding_error", "content_hash", "lexemes", "lexeme_count"}


@dataclass(frozen=True, slots=True, eq=False)
class Upgraded:
    """A database upgraded from revision 0002, and what it held then."""

    url: str
    dimensions: int
    before: list[dict[str, Any]]


@pytest.fixture(scope="module", params=[8, 768, 12_001])
def upgraded(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Upgraded]:
    dimensions: int = request.param
    space = EmbeddingSpace(MODEL, dimensions)
    url = databases.create(None)
    migrate.upgrade(url, space, revision="0002")
    with psycopg.connect(url) as connection:
        register_vector(connection)
        connection.execute("INSERT INTO users VALUES (%s, %s)", [OWNER, NOW])
        connection.execute("INSERT INTO conversations VALUES (%s, 'a', %s), (%s, 'b', %s)", [OWNER, NOW, OWNER, NOW])
        connection.cursor().executemany(INSERT, [row_of(number, dimensions) for number in range(ROWS)])
    before = contents(url)
    assert migrate.upgrade(url, space)[0] == "0003"
    yield Upgraded(url, dimensions, before)
    databases.drop(url)


def row_of(number: int, dimensions: int) -> dict[str, Any]:
    embedding = normalize(random_vector(number, dimensions=dimensions))
    is_deleted = number % 9 == 0
    return {
        "user_id": OWNER,
        "id": UUID(int=number),
        "conversation_id": [None, "a", "b"][number % 3],
        "content": f"memory {number}",
        "metadata": Jsonb({"number": number}),
        "embedding": to_parameter(embedding),
        "norm": embedding.norm,
        "importance": 1 + number % 10,
        "created_at": NOW + timedelta(minutes=number),
        "deleted_at": LATER if is_deleted else None,
        "purge_at": PURGE_AT if is_deleted else None,
    }


LIVE = [number for number in range(ROWS) if number % 9]


def contents(url: str) -> list[dict[str, Any]]:
    """Returns all memories, embeddings as text."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM memory_entries ORDER BY id").fetchall()


def test_every_memory_is_kept_as_it_was(upgraded: Upgraded) -> None:
    after = contents(upgraded.url)
    added = after[0].keys() - upgraded.before[0].keys()
    kind = coarse_of(upgraded.dimensions)
    for_searches = {
        Coarse.EMBEDDING: {"conversation_key"},
        Coarse.SIGNS: {"conversation_key", "bits"},
        Coarse.NOTHING: {"conversation_key"},
    }
    assert added == for_searches[kind] | OF_WORDS | {"standby_stale"}
    assert [{name: row[name] for name in upgraded.before[0]} for row in after] == upgraded.before


def test_the_index_holds_the_live_memories_only(upgraded: Upgraded) -> None:
    with psycopg.connect(upgraded.url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE) memory_entries")
        query = "SELECT reltuples FROM pg_class WHERE relname = 'memory_entries_search'"
        held = connection.execute(query).fetchall()
    assert held == ([] if coarse_of(upgraded.dimensions) is Coarse.NOTHING else [(len(LIVE),)])


def test_searches_find_what_was_stored_before(upgraded: Upgraded, open_database: OpenDatabase) -> None:
    database = open_database(upgraded.url, slow_query_ms=0.0)
    kind = coarse_of(upgraded.dimensions)
    query = random_vector(7, dimensions=upgraded.dimensions)

    def find(filter_: Filter) -> tuple[Answer, list[str]]:
        nearest = Nearest(embedding=normalize(query), metric=Metric.COSINE, limit=ROWS, filter=filter_, view=View.BASIC)
        means = Means(coarse=kind, ann=None, user_rows=100_000, tuning=SearchTuning())
        with capture_logs() as events:
            answer = database.read(database.call(), lambda conn: search(conn, OWNER, nearest, means), user_id=OWNER)
        return answer, [event["statement"] for event in events]

    for filter_, expected in (
        (Filter(), LIVE),
        (Filter(conversation_id="a"), [number for number in LIVE if number % 3 == 1]),
        (Filter(min_importance=6), [number for number in LIVE if number % 10 >= 5]),
        (Filter(created_before=NOW + timedelta(minutes=30)), [number for number in LIVE if number < 30]),
    ):
        answer, statements = find(filter_)
        assert statements == ["search.table" if kind is Coarse.NOTHING else "search.candidates"]
        assert answer.plan is Plan.EXACT
        assert [hit.memory.id.int for hit in answer.hits] == by_similarity(query, expected)
        assert all(hit.memory.content == f"memory {hit.memory.id.int}" for hit in answer.hits)
    assert len(find(Filter(show_deleted=True))[0].hits) == ROWS


def by_similarity(query: NDArray[np.float32], numbers: list[int]) -> list[int]:
    vectors = [random_vector(number, dimensions=len(query)) for number in numbers]
    similarity = [float(vector @ query) / float(np.linalg.norm(vector)) for vector in vectors]
    return [number for _, number in sorted(zip(similarity, numbers, strict=True), reverse=True)]
