"""Housekeeping: what has expired goes, in as many batches as it takes."""

from datetime import timedelta
from uuid import uuid4

import pytest
import structlog

from db.embedding_cache import cache_key
from db.embedding_cache import store as store_embeddings
from db.pool import Database
from db.requests import RequestKey, once
from db.wall import ACROSS_USERS
from memory_service import housekeeping
from memory_service.housekeeping import CacheBounds, Housekeeping
from tests.storage.concurrency import wait_for
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, new_memory, random_vector, rows, soft_delete, store


def expire(database: Database, user_id: str, *, memories: int, request_ids: int) -> None:
    """Leaves so much for housekeeping to do from PURGE_AT on, and as much that lives."""
    doomed = [new_memory() for _ in range(memories)]
    store(database, user_id, *doomed, *[new_memory() for _ in range(memories)])
    for memory in doomed:
        soft_delete(database, user_id, memory.id)
    for expires_at in (LATER, PURGE_AT + timedelta(days=1)):
        for _ in range(request_ids):
            key = RequestKey(user_id=user_id, request_id=uuid4(), request_hash=b"", expires_at=expires_at)
            database.write(
                database.call(),
                lambda conn, key=key: once(conn, key, lambda: b"", now=NOW),  # type: ignore[misc]
                user_id=user_id,
            )


def left(database: Database, user_id: str) -> tuple[int, int]:
    memories = rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id])
    return len(memories), len(rows(database, b"SELECT FROM request_ids WHERE user_id = %s", [user_id]))


def test_everything_expired_goes_in_batches(database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 2)
    keeper = Housekeeping(database, clock=lambda: PURGE_AT, interval_s=3_600)
    keeper.purge()  # what other tests have left
    expire(database, user_id, memories=5, request_ids=3)
    with structlog.testing.capture_logs() as events:
        keeper.purge()
        keeper.purge()
    assert left(database, user_id) == (5, 3)
    assert events == [{"event": "purged", "memories": 5, "request_ids": 3, "log_level": "info"}]


def test_nothing_goes_before_its_time(database: Database, user_id: str) -> None:
    expire(database, user_id, memories=1, request_ids=1)
    Housekeeping(database, clock=lambda: LATER - timedelta(microseconds=1), interval_s=3_600).purge()
    assert left(database, user_id) == (2, 2)


def test_thread_purges_by_itself(database: Database, user_id: str) -> None:
    expire(database, user_id, memories=1, request_ids=1)
    keeper = Housekeeping(database, clock=lambda: PURGE_AT, interval_s=0.01)
    keeper.start()
    wait_for(lambda: left(database, user_id) == (1, 1))
    keeper.close()


def test_embeddings_that_are_old_or_too_many_go(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 2)
    evicted: list[tuple[int, int]] = []
    bounds = CacheBounds(
        max_rows=4,
        ttl=timedelta(days=10),
        on_evict=lambda *, expired, excess: evicted.append((expired, excess)),
    )
    keeper = Housekeeping(database, clock=lambda: NOW, interval_s=3_600, cache=bounds)
    keeper.purge()  # what other tests have left
    for days in range(12):
        key = cache_key("m", 8, f"{days} days old")
        now = NOW - timedelta(days=days)
        database.write(
            database.call(),
            lambda conn, key=key, now=now: store_embeddings(conn, {key: random_vector(1)}, now=now, expired=now),  # type: ignore[misc]
            user_id=ACROSS_USERS,
        )
    evicted.clear()
    with structlog.testing.capture_logs() as events:
        keeper.purge()
        keeper.purge()
    assert evicted == [(2, 6), (0, 0)]
    kept = rows(database, b"SELECT key FROM embedding_cache")
    assert {row[0] for row in kept} == {cache_key("m", 8, f"{days} days old") for days in range(4)}
    assert events == [{"event": "embedding_cache_evicted", "expired": 2, "excess": 6, "log_level": "info"}]
