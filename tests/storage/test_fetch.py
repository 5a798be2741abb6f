"""Reading one memory: how much of it, whose it is, and its lock."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from db import fetch
from db.access import Accesses, write_accesses
from db.connection import Connection
from db.errors import EtagMismatch, MemoryNotFound
from db.memory import View, etag
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, new_memory, read, soft_delete, store, stored


def test_views_leave_out_what_they_say(database: Database, user_id: str) -> None:
    memory = new_memory(content="c", summary="s", metadata={"m": 1}, conversation_id="c-1", importance=9)
    store(database, user_id, memory)
    full = read(database, user_id, memory.id, view=View.FULL)
    assert full.embedding is not None
    assert read(database, user_id, memory.id, view=View.BASIC) == replace(full, embedding=None)
    head = read(database, user_id, memory.id, view=View.HEAD)
    left_out: dict[str, Any] = dict.fromkeys(
        ("content", "summary", "metadata", "language", "embedding_state", "embedding")
    )
    assert head == replace(full, **left_out)


def test_deleted_memory_can_be_read(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    soft_delete(database, user_id, memory_id)
    found = read(database, user_id, memory_id)
    assert (found.deleted_at, found.purge_at) == (LATER, PURGE_AT)


def test_accesses_are_read_with_the_memory(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    accesses = [((user_id, memory_id.int), Accesses(3, LATER))]
    database.write(database.call(), lambda conn: write_accesses(conn, accesses), user_id=ACROSS_USERS)
    for view in View:
        found = read(database, user_id, memory_id, view=view)
        assert (found.access_count, found.last_accessed_at) == (3, LATER)


@pytest.mark.parametrize("view", View)
def test_memory_of_another_user_is_not_there(database: Database, user_id: str, view: View) -> None:
    memory_id = stored(database, user_id)
    for stranger in (user_id + "2", user_id[:-1], user_id.upper(), ""):
        with pytest.raises(MemoryNotFound, match=str(memory_id)):
            read(database, stranger, memory_id, view=view)
    with pytest.raises(MemoryNotFound):
        read(database, user_id, uuid4(), view=view)


def test_etag_is_checked_under_the_lock(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    current = etag(1, NOW)

    def check(conn: Connection) -> None:
        with conn.transaction():
            for given in ("", current):
                assert fetch.fetch_for_update(conn, user_id, memory_id, view=View.HEAD, etag=given).etag == current
            with pytest.raises(EtagMismatch, match=f"its etag is now {current}$"):
                fetch.fetch_for_update(conn, user_id, memory_id, view=View.HEAD, etag="2-0")

    database.write(database.call(), check, user_id=user_id)


def test_lock_does_not_hold_up_access_counters(database: Database, user_id: str, module_database_url: str) -> None:
    memory_id = stored(database, user_id)

    def count_meanwhile(conn: Connection) -> None:
        with conn.transaction(), psycopg.connect(module_database_url) as other:
            fetch.fetch_for_update(conn, user_id, memory_id, view=View.HEAD, etag="")
            other.execute("SET lock_timeout = '1s'")
            other.execute(
                "INSERT INTO memory_access (user_id, id, access_count, last_accessed_at) VALUES (%s, %s, 1, now())",
                [user_id, memory_id],
            )

    database.write(database.call(), count_meanwhile, user_id=user_id)
    assert read(database, user_id, memory_id).access_count == 1


def test_etags_tell_versions_and_lives_apart() -> None:
    assert etag(1, NOW) != etag(2, NOW)
    assert etag(1, NOW) != etag(1, LATER)
