"""Statistics against a count in Python."""

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import Cursor
from psycopg.rows import TupleRow

from db import stats
from db.access import Accesses, write_accesses
from db.connection import Connection, Statement
from db.pool import Database
from db.stats import ConversationStats, UserStats
from db.wall import ACROSS_USERS
from tests.storage import sample_filters
from tests.storage.brute_force import Row
from tests.storage.sample_memories import (
    DIMENSIONS,
    NOW,
    hard_delete,
    new_memory,
    random_vector,
    rows,
    soft_delete,
    store,
    stored,
)


def stats_of(database: Database, user_id: str, *, conversation_limit: int = 100) -> UserStats:
    return database.read(
        database.call(),
        lambda conn: stats.user_stats(conn, user_id, conversation_limit=conversation_limit, dimensions=DIMENSIONS),
        user_id=user_id,
    )


@st.composite
def holdings(draw: st.DrawFn) -> list[Row]:
    owner = uuid4().hex
    return [
        Row(
            user_id,
            new_memory(
                conversation_id=draw(sample_filters.conversations),
                content=draw(st.text("aé雪", max_size=5)),
                summary=draw(st.text("aé", max_size=2)),
                metadata=draw(sample_filters.metadata),
                importance=draw(sample_filters.importances),
                created_at=draw(sample_filters.moments),
            ),
            random_vector(0),
            draw(st.sampled_from([False, False, True])),
        )
        for user_id in (owner, owner + "x")
        for _ in range(draw(st.integers(0, 8)))
    ]


@given(holding=holdings(), limit=st.integers(1, 5), seed=st.integers(0, 99))
def test_stats_are_the_counts(database: Database, holding: list[Row], limit: int, seed: int) -> None:
    accesses = Counter[str]()
    for owner in sorted({row.user_id for row in holding}):
        mine = [row for row in holding if row.user_id == owner]
        store(database, owner, *[row.memory for row in mine])
        for number, row in enumerate(mine):
            count = (seed + number) % 4
            noted = [((owner, row.memory.id.int), Accesses(count, NOW))]
            database.write(database.call(), lambda conn, noted=noted: write_accesses(conn, noted), user_id=ACROSS_USERS)  # type: ignore[misc]
            accesses[owner] += 0 if row.deleted else count
            if row.deleted:
                soft_delete(database, owner, row.memory.id)

    for owner in {row.user_id for row in holding} or {uuid4().hex}:
        mine = [row for row in holding if row.user_id == owner]
        live = [row.memory for row in mine if not row.deleted]
        found = stats_of(database, owner, conversation_limit=limit)
        assert found.live_count == len(live)
        assert found.deleted_count == len(mine) - len(live)
        mean = sum(memory.importance for memory in live) / len(live) if live else 0
        assert found.average_importance == pytest.approx(mean)
        assert found.total_accesses == accesses[owner]
        assert found.oldest_created_at == min((memory.created_at for memory in live), default=None)
        assert found.newest_created_at == max((memory.created_at for memory in live), default=None)
        assert found.stored_bytes == stored_bytes(database, owner, mine)
        assert found.conversation_count == len({memory.conversation_id for memory in live} - {None})
        assert found.conversations == breakdown(mine)[:limit]


def stored_bytes(database: Database, user_id: str, mine: list[Row]) -> int:
    """Counts the texts in Python; how long PostgreSQL writes metadata, only PostgreSQL knows."""
    texts = sum(len(row.memory.content.encode()) + len(row.memory.summary.encode()) for row in mine)
    [(metadata,)] = rows(
        database,
        b"SELECT coalesce(sum(octet_length(metadata::text)), 0) FROM memory_entries WHERE user_id = %s",
        [user_id],
    )
    return texts + int(metadata) + len(mine) * 2 * DIMENSIONS


def breakdown(mine: list[Row]) -> list[ConversationStats]:
    """Returns the conversations, the most recently written first."""
    found = []
    for conversation_id in {row.memory.conversation_id for row in mine}:
        held = [row for row in mine if row.memory.conversation_id == conversation_id]
        deleted = sum(row.deleted for row in held)
        newest = max(row.memory.created_at for row in held)
        found.append(ConversationStats(conversation_id, len(held) - deleted, deleted, newest))
    # PostgreSQL sorts NULL last.
    found.sort(key=lambda conversation: (conversation.conversation_id is None, conversation.conversation_id or ""))
    return sorted(found, key=lambda conversation: conversation.newest_created_at, reverse=True)


def test_counts_are_of_one_moment(database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(conn: Connection) -> UserStats:
        run = conn.query

        def and_meanwhile(statement: Statement, parameters: Mapping[str, Any]) -> Cursor[TupleRow]:
            found = run(statement, parameters)
            store(database, user_id, new_memory(embedding=None))
            return found

        with monkeypatch.context() as patched:
            patched.setattr(conn, "query", and_meanwhile)
            return stats.user_stats(conn, user_id, conversation_limit=1, dimensions=DIMENSIONS)

    found = database.read(database.call(), counted, user_id=user_id)
    assert (found.live_count, found.stored_bytes) == (0, 0)


def test_erased_memories_do_not_count(database: Database, user_id: str) -> None:
    stored(database, user_id, content="kept")
    erased = stored(database, user_id, created_at=NOW + timedelta(days=1), conversation_id="c")
    noted = [((user_id, erased.int), Accesses(9, NOW))]
    database.write(database.call(), lambda conn: write_accesses(conn, noted), user_id=ACROSS_USERS)
    hard_delete(database, user_id, erased)
    assert stats_of(database, user_id) == UserStats(
        live_count=1,
        deleted_count=0,
        average_importance=5.0,
        total_accesses=0,
        oldest_created_at=NOW,
        newest_created_at=NOW,
        stored_bytes=len("kept") + len("{}") + 2 * DIMENSIONS,
        conversation_count=0,
        conversations=[ConversationStats(None, 1, 0, NOW)],
    )


def test_unknown_user_has_nothing(database: Database, user_id: str) -> None:
    assert stats_of(database, user_id) == UserStats(
        live_count=0,
        deleted_count=0,
        average_importance=0.0,
        total_accesses=0,
        oldest_created_at=None,
        newest_created_at=None,
        stored_bytes=0,
        conversation_count=0,
        conversations=[],
    )
