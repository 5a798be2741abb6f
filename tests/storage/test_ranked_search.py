"""Ranked searches while others write: a memory may vanish before any of their statements."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest

from db.access import AccessBuffer
from db.ann_registry import AnnRegistry
from db.connection import Connection, Statement, name_of
from db.pool import Database
from db.search_plan import SearchTuning
from db.user_sizes import UserSizes
from db.vectors import Embedding, normalize
from memory_service import config, ranked_search
from memory_service.limits import limits_of
from memory_service.messages.ranking_request import RankingDefaults
from memory_service.searching import Searching
from memory_service.v1 import memory_pb2 as pb
from tests.api.messages import axis
from tests.storage.sample_memories import DIMENSIONS, LATER, NOW, new_memory, store

# Of a hybrid search with all options, in order.
STATEMENTS = [
    *("search.candidates", "candidates.features", "lexical.terms", "lexical.search", "candidates.features"),
    *("candidates.neighbours", "candidates.features", "lexical.score", "fetch.chosen", "surroundings.around"),
]
LIMIT = 3

Method = Callable[..., Any]

VANISHING = {
    "deleted": b"UPDATE memory_entries SET deleted_at = now(), purge_at = now() WHERE user_id = %s AND id = %s",
    "erased": b"DELETE FROM memory_entries WHERE user_id = %s AND id = %s",
    "changed": b"UPDATE memory_entries SET importance = 1 WHERE user_id = %s AND id = %s",
}


@pytest.fixture
def searching(database: Database, monkeypatch: pytest.MonkeyPatch) -> Searching:
    """Searches so few candidates that some memories are reached as neighbours of others only."""
    monkeypatch.setattr(ranked_search, "MIN_CANDIDATES_TO_CHOOSE_FROM", LIMIT)
    monkeypatch.setattr(ranked_search, "CANDIDATES_PER_RESULT", 1)
    return Searching(
        database=database,
        accesses=AccessBuffer(database, flush_interval_s=3_600),
        embeddings=None,
        ann=AnnRegistry(database),
        sizes=UserSizes(database, counted=lambda _user_id, _rows: None),
        tuning=SearchTuning,
        observe=lambda _user_id, _outcome: None,
        ranking=RankingDefaults(),
        dimensions=DIMENSIONS,
        limits=limits_of(config.load(embedder="none", embedding_dimensions=DIMENSIONS)),
        clock=lambda: LATER,
    )


# To the request below, by a memory's number. Three are nearer than the others, which are equally near: so it is certain
# what is found by meaning (these), by words (0 to 2), and beside those in the conversation (3 and 6).
COSINES = {0: 1.0, 4: 0.5, 5: 0.4}


@pytest.fixture
def ids(database: Database, user_id: str) -> list[UUID]:
    """A conversation, the best first for the request below."""
    memories = [
        new_memory(
            content=f"{'harbour ' * (6 - number)} number {number}" if number < 6 else "a cello",
            conversation_id="c",
            embedding=at_cosine(COSINES.get(number, 0.0), number),
            created_at=NOW + timedelta(minutes=number),
        )
        for number in range(8)
    ]
    store(database, user_id, *memories)
    return [memory.id for memory in memories]


def at_cosine(cosine: float, axis: int) -> Embedding:
    """Returns an embedding of this cosine with the first axis, the rest of it along another."""
    vector = np.zeros(DIMENSIONS)
    vector[axis] = np.sqrt(1 - cosine**2)
    vector[0] += cosine
    return normalize(vector)


def request(user_id: str) -> pb.SearchSimilarRequest:
    """Returns a search with everything that takes a statement of its own."""
    return pb.SearchSimilarRequest(
        user_id=user_id,
        text="harbour",
        embedding=axis(0),
        limit=LIMIT,
        filter=pb.MemoryFilter(min_importance=2),
        conversation=pb.ConversationOptions(neighbour_weight=0.2, conversation_weight=0.1, context=1),
        diversity=pb.Diversity(mmr_lambda=0.99, collapse_similarity=0.999),
        explain=True,
    )


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function letting something happen before one of STATEMENTS, None for none; returns the names as they run."""

    def arrange(number: int | None, happen: Callable[[], object]) -> list[str]:
        names: list[str] = []
        # The same plan may ask for candidates once more; the others run as often as they stand there.
        wanted = None if number is None else (STATEMENTS[number], STATEMENTS[:number].count(STATEMENTS[number]))

        def noting(method: Method) -> Method:
            def run(self: Connection, statement: Statement, parameters: dict[str, object], **options: Any) -> object:
                name = name_of(statement)
                if (name, names.count(name)) == wanted:
                    happen()
                names.append(name)
                return method(self, statement, parameters, **options)

            return run

        monkeypatch.setattr(Connection, "query", noting(Connection.query))
        monkeypatch.setattr(Connection, "rows", noting(Connection.rows))
        return names

    return arrange


def found(searching: Searching, user_id: str) -> list[UUID]:
    reply = searching.search(request(user_id), searching.database.call())
    return [UUID(result.memory.id) for result in reply.results]


def test_the_statements_of_a_search(
    searching: Searching, user_id: str, ids: list[UUID], before: Callable[..., list[str]]
) -> None:
    names = before(None, lambda: None)
    assert found(searching, user_id)[0] == ids[0]
    assert list(dict.fromkeys(names)) == list(dict.fromkeys(STATEMENTS))


@pytest.mark.parametrize("number", range(len(STATEMENTS)), ids=lambda number: f"{number} {STATEMENTS[number]}")
@pytest.mark.parametrize("how", VANISHING)
def test_a_memory_that_vanishes_meanwhile_makes_room_for_another(  # noqa: PLR0917 - fixtures and parameters
    searching: Searching,
    user_id: str,
    ids: list[UUID],
    module_database_url: str,
    before: Callable[..., list[str]],
    how: str,
    number: int,
) -> None:
    vanished = []

    def vanish() -> None:
        with psycopg.connect(module_database_url, autocommit=True) as other:
            vanished.append(other.execute(VANISHING[how], [user_id, ids[0]]).rowcount)

    before(number, vanish)
    best = found(searching, user_id)

    assert vanished == [1]
    assert len(best) == LIMIT
    read = STATEMENTS.index("fetch.chosen")
    assert (ids[0] in best) == (number > read), "what is gone before it is read is no result"
    assert ids[0] not in found(searching, user_id)


def test_when_all_vanish_nothing_is_found(
    searching: Searching,
    user_id: str,
    ids: list[UUID],
    module_database_url: str,
    before: Callable[..., list[str]],
) -> None:
    def vanish() -> None:
        with psycopg.connect(module_database_url, autocommit=True) as other:
            assert other.execute(b"DELETE FROM memory_entries WHERE user_id = %s", [user_id]).rowcount == len(ids)

    before(STATEMENTS.index("fetch.chosen"), vanish)
    assert found(searching, user_id) == []
