"""The back-fill of a move to another model: begun once, interrupted anywhere, and never behind what was written."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pgvector import HalfVector

from db import embedding_jobs, reembedding
from db.connection import Connection
from db.errors import InvalidValue, ReembeddingBehind, ReembeddingConflict
from db.pool import Database
from db.reembedding import Phase, Progress, Reembedded
from db.reembedding_columns import storage_alone, storage_beside
from db.schema import EmbeddingSpace
from db.update import Changes, update
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.conftest import OpenDatabase
from tests.storage.reembedding_calls import (
    NEW,
    OLD,
    batch_after,
    begin,
    build,
    columns_of,
    embedding_of,
    memory_of,
    reconnect,
    run_round,
    state,
    store_batch,
    switch,
)
from tests.storage.sample_memories import LATER, hard_delete, new_memory, rows, soft_delete, store, unit

STANDBY = b"""
SELECT content, standby_embedding, standby_embedding_norm, standby_embedding_model FROM memory_entries
ORDER BY user_id, id
"""


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database of the test's own: a move is of all of it."""
    return new_database()


@pytest.fixture
def database(url: str, open_database: OpenDatabase) -> Database:
    return open_database(url, max_size=1)  # after a switch one attempt is in vain


def fill(database: Database, *users: str, each: int = 10) -> None:
    for user_id in users:
        store(database, user_id, *(memory_of(f"{user_id} {number}", OLD) for number in range(each)))


def progress(database: Database) -> Progress:
    return database.read(database.call(), reembedding.progress, user_id=ACROSS_USERS)


def change(database: Database, user_id: str, memory_id: UUID, **changes: Any) -> None:
    database.write(
        database.call(),
        lambda conn: update(
            conn, user_id, memory_id, Changes(**changes), etag="", now=LATER, check_metadata=lambda _: None
        ),
        user_id=user_id,
    )


def require_fresh(database: Database) -> None:
    """Checks that each memory's standby embedding is what the new model makes of its present content."""
    for content, embedding, norm, model in rows(database, STANDBY):
        expected = embedding_of(content, NEW)
        assert isinstance(embedding, HalfVector)
        assert np.array_equal(embedding.to_numpy(), expected.unit)
        assert (norm, model) == (expected.norm, NEW.model)


def test_beginning_writes_no_row(database: Database) -> None:
    fill(database, "a", each=3)
    before = rows(database, b"SELECT ctid, xmin FROM memory_entries ORDER BY id")
    move = begin(database)
    assert (move.standby, move.live, move.phase) == (NEW, OLD, Phase.BACKFILL)
    assert (move.embedder, move.live_embedder) == ("openai", "local")
    assert rows(database, b"SELECT ctid, xmin FROM memory_entries ORDER BY id") == before


def test_it_begins_once(database: Database) -> None:
    assert state(database) is None
    assert begin(database) == begin(database) == state(database)
    for embedder, space in (("local", NEW), ("openai", EmbeddingSpace("third", 8)), ("openai", OLD)):
        with pytest.raises(ReembeddingConflict, match=r"new-model.* is under way"):
            begin(database, space, embedder=embedder)


def test_there_is_no_move_to_where_it_is(database: Database) -> None:
    with pytest.raises(ReembeddingConflict, match="there is nothing to do"):
        begin(database, OLD)
    assert state(database) is None


def test_too_many_dimensions_begin_nothing(database: Database, url: str) -> None:
    before = columns_of(url)
    with pytest.raises(InvalidValue):
        begin(database, EmbeddingSpace("wide", 16_001))
    assert state(database) is None
    assert columns_of(url) == before


def test_an_interrupted_round_goes_on_where_it_was(database: Database) -> None:
    fill(database, "a", "b", "c")
    removed = rows(database, b"SELECT id FROM memory_entries WHERE user_id = 'b' ORDER BY id LIMIT 1")[0][0]
    soft_delete(database, "b", removed)
    begin(database)
    assert progress(database) == Progress(total=30, fresh=0, refused=0)

    first = batch_after(database, limit=7)
    assert {one.user_id for one in first} == {"a"}
    store_batch(database, first)
    lost = batch_after(
        database, (first[-1].user_id, first[-1].id), limit=7
    )  # embedded, and killed before it was stored
    assert progress(database) == Progress(total=30, fresh=7, refused=0)

    assert batch_after(database, limit=7) == lost
    assert run_round(database, limit=7) == 23
    assert progress(database) == Progress(total=30, fresh=30, refused=0)
    assert batch_after(database) == []
    require_fresh(database)


def test_what_is_written_meanwhile_is_caught_up_with(database: Database) -> None:
    fill(database, "a", each=5)
    begin(database)
    batch = batch_after(database)
    change(database, "a", batch[0].id, content="changed while it was embedded", embedding=unit(), embedding_model="m")
    hard_delete(database, "a", batch[1].id)
    assert store_batch(database, batch) == 3

    change(database, "a", batch[2].id, content="changed afterwards", embedding=unit(), embedding_model="m")
    change(database, "a", batch[3].id, content="changed without an embedding")
    change(database, "a", batch[4].id, importance=9, summary="another")
    added = memory_of("added", OLD)
    store(database, "a", added)
    assert progress(database) == Progress(total=5, fresh=1, refused=0)

    assert {one.id for one in batch_after(database)} == {batch[0].id, batch[2].id, batch[3].id, added.id}
    assert run_round(database) == 4
    require_fresh(database)


def test_a_change_of_the_embedding_alone_is_caught_up_with(database: Database) -> None:
    fill(database, "a", each=1)
    begin(database)
    [stale] = batch_after(database)
    run_round(database)
    change(database, "a", stale.id, embedding=unit(3), embedding_model="caller")
    assert [one.id for one in batch_after(database)] == [stale.id]


def test_what_waits_for_the_old_model_is_embedded_as_it_would_be(database: Database) -> None:
    pending = {"embedding": None, "embedding_model": OLD.model}
    store(database, "a", new_memory(content="x", embed_text="what the caller wants embedded", **pending))
    store(database, "b", new_memory(content="its content", **pending))
    begin(database)
    assert [one.text for one in batch_after(database)] == ["what the caller wants embedded", "its content"]
    assert run_round(database) == 2
    # The old model may come later, and changes nothing about it.
    jobs = database.write(
        database.call(),
        lambda conn: embedding_jobs.take(conn, now=LATER, leased_until=LATER, limit=10),
        user_id=ACROSS_USERS,
    )
    embeddings = [embedding_of(job.text, OLD) for job in jobs]
    database.write(
        database.call(),
        lambda conn: embedding_jobs.complete(conn, jobs, embeddings, model=OLD.model),
        user_id=ACROSS_USERS,
    )
    assert progress(database) == Progress(total=2, fresh=2, refused=0)


def test_a_refused_text_holds_up_nothing_until_it_changes(database: Database) -> None:
    store(database, "a", memory_of("! ", OLD), memory_of("fine", OLD))
    begin(database)
    assert run_round(database) == 2
    assert progress(database) == Progress(total=2, fresh=1, refused=1)
    assert progress(database).missing == 0
    assert batch_after(database) == []
    errors = rows(database, b"SELECT standby_embedding_error FROM memory_entries WHERE content = '! '")
    assert errors == [("nothing to embed",)]

    [(refused,)] = rows(database, b"SELECT id FROM memory_entries WHERE content = '! '")
    change(database, "a", refused, content="fine now", embedding=unit(), embedding_model=OLD.model)
    assert run_round(database) == 1
    assert progress(database) == Progress(total=2, fresh=2, refused=0)
    require_fresh(database)


@pytest.mark.parametrize("stored_as", [EmbeddingSpace("third", 8), EmbeddingSpace(NEW.model, 9)], ids=str)
def test_embeddings_of_another_space_are_not_stored(database: Database, stored_as: EmbeddingSpace) -> None:
    fill(database, "a", each=1)
    begin(database)
    with pytest.raises(ReembeddingConflict, match="start again"):
        store_batch(database, batch_after(database), stored_as)
    assert progress(database) == Progress(total=1, fresh=0, refused=0)


def test_a_late_batch_is_not_stored_after_the_switch(database: Database, url: str) -> None:
    fill(database, "a", each=2)
    begin(database)
    late = batch_after(database)
    run_round(database)
    build(url)
    switch(url)
    reconnect(database)
    with pytest.raises(ReembeddingConflict, match="to be of model 'test-model'"):
        store_batch(database, late, NEW)


def test_without_a_move_there_is_nothing_to_do(database: Database, url: str) -> None:
    none = Reembedded(
        stale=reembedding.Stale(user_id="a", id=UUID(int=1), content_hash=1, text="x"), embedding=unit(), error=None
    )
    calls: list[Callable[[Connection], object]] = [
        reembedding.progress,
        lambda conn: reembedding.stale_batch(conn, after=None, limit=1),
        lambda conn: reembedding.store_batch(conn, [none], model="m"),
    ]
    for call in calls:
        with pytest.raises(ReembeddingConflict, match="begin one"):
            database.read(database.call(), call, user_id=ACROSS_USERS)
    for step in (build, switch):
        with pytest.raises(ReembeddingConflict, match="begin one"):
            step(url)


def test_a_switch_waits_for_the_back_fill(database: Database, url: str) -> None:
    fill(database, "a", each=3)
    begin(database)
    with pytest.raises(ReembeddingConflict, match="build the indexes"):
        switch(url)
    build(url)
    with pytest.raises(ReembeddingBehind, match="run the back-fill once more") as behind:
        switch(url, max_pending=2)
    assert behind.value.pending == 3
    assert state(database) == begin(database)


# Two in a page, with room for what else there is: as long as both and 600 bytes fit.
@pytest.mark.parametrize(
    ("live", "standby", "storage"),
    [
        (256, 1_024, "PLAIN"),
        (1_536, 1_536, "PLAIN"),
        (1_536, 3_550, "MAIN"),
        (3_550, 8, "MAIN"),
        (4_000, 3_550, "PLAIN"),
        (8, 4_000, "EXTERNAL"),
    ],
)
def test_two_embeddings_share_a_page_where_they_fit(live: int, standby: int, storage: str) -> None:
    assert storage_beside(standby, live_dimensions=live) == storage
    assert (storage_alone(standby) == "EXTERNAL") == (storage == "EXTERNAL")


def test_two_large_embeddings_and_long_texts_fit_a_row(new_database: NewDatabase, open_database: OpenDatabase) -> None:
    url = new_database(dimensions=1_536)
    database = open_database(url)
    live, standby = EmbeddingSpace(OLD.model, 1_536), EmbeddingSpace("large", 3_550)
    texts = ["short", "".join(map(chr, np.random.default_rng(1).integers(0x4E00, 0x9FFF, 20_000)))]
    store(database, "a", *(memory_of(text, live, summary=text[:5_000]) for text in texts))
    begin(database, standby)
    assert run_round(database, standby) == 2
    build(url)
    switch(url)
    query = b"SELECT content, embedding, standby_embedding FROM memory_entries"
    for content, embedding, before in rows(database, query):
        assert np.array_equal(embedding.to_numpy(), embedding_of(content, standby).unit)
        assert np.array_equal(before.to_numpy(), embedding_of(content, live).unit)
