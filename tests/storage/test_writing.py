"""Writing below gRPC: what happens when the world changes while a text is embedded, and when a call is repeated."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Self
from uuid import UUID, uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from db.cancellation import Call
from db.connection import Connection
from db.errors import Conflict, EtagMismatch, MemoryDeleted, MemoryNotFound, RequestIdReused
from db.pool import Database
from db.requests import RequestKey
from db.usage import Usage
from memory_service import config, mutations
from memory_service.access.errors import LimitExceeded
from memory_service.access.quotas import NoQuotas
from memory_service.embedding.errors import EmbedderUnavailable
from memory_service.limits import limits_of
from memory_service.messages.violations import InvalidArgument
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb
from memory_service.writing import Writing
from tests.clock import Clock
from tests.storage.concurrency import at_once
from tests.storage.sample_embedder import SampleEmbedder, vector_of
from tests.storage.sample_memories import DIMENSIONS, LATER, NOW, hard_delete, read, rows, soft_delete
from tests.structs import to_struct

DAY = timedelta(days=1)


@pytest.fixture
def writing(database: Database, embedder: SampleEmbedder, clock: Clock) -> Writing:
    settings = config.load(embedder="none", embedding_dimensions=DIMENSIONS)
    return Writing(
        database=database,
        embeddings=TextEmbeddings(embedder, database, clock),
        dimensions=DIMENSIONS,
        limits=limits_of(settings),
        clock=clock,
    )


def insert(writing: Writing, user_id: str, **fields: object) -> pb.Memory:
    memory = pb.NewMemory(**{"content": "first", **fields})  # type: ignore[arg-type]
    request = pb.InsertVectorRequest(user_id=user_id, memory=memory)
    return writing.insert(request, writing.database.call()).memory


def update(writing: Writing, user_id: str, id_: str, *, mask: str = "", **fields: object) -> pb.Memory:
    request = pb.UpdateVectorRequest(
        user_id=user_id,
        id=id_,
        memory=pb.Memory(**fields),  # type: ignore[arg-type]
        update_mask=FieldMask(paths=mask.split(",")) if mask else None,
    )
    return writing.update(request, writing.database.call()).memory


def assert_embedded(database: Database, user_id: str, id_: str, text: str) -> None:
    found = read(database, user_id, UUID(id_))
    assert found.embedding is not None
    assert found.embedding.original() == pytest.approx(vector_of(text), abs=0.02)
    assert found.embedding_model == "sample-model"


def insert_request(user_id: str, *, content: str = "first", request_id: UUID | None = None) -> pb.InsertVectorRequest:
    memory = pb.NewMemory(content=content)
    return pb.InsertVectorRequest(user_id=user_id, memory=memory, request_id=str(request_id or uuid4()))


def run(writing: Writing, request: pb.InsertVectorRequest) -> pb.InsertVectorResponse:
    return writing.insert(request, writing.database.call())


def stored_ids(database: Database, user_id: str) -> set[str]:
    return {str(row[0]) for row in rows(database, b"SELECT id FROM memory_entries WHERE user_id = %s", [user_id])}


def test_repeated_call_is_answered_without_the_embedder(
    writing: Writing, embedder: SampleEmbedder, database: Database, clock: Clock, user_id: str
) -> None:
    request = insert_request(user_id)
    first = run(writing, request)
    embedder.error = EmbedderUnavailable("it is down", retry_after_s=1.0)
    clock.now = LATER
    assert run(writing, request) == first
    assert stored_ids(database, user_id) == {first.memory.id}


def test_request_id_serves_one_request_until_it_expires(
    writing: Writing, database: Database, clock: Clock, user_id: str
) -> None:
    request_id = uuid4()
    first = run(writing, insert_request(user_id, request_id=request_id))
    other = insert_request(user_id, content="other", request_id=request_id)
    clock.now = NOW + DAY - timedelta(microseconds=1)
    with pytest.raises(RequestIdReused):
        run(writing, other)
    delete = pb.DeleteVectorRequest(user_id=user_id, id=first.memory.id, request_id=str(request_id))
    with pytest.raises(RequestIdReused):
        writing.delete(delete, database.call())
    clock.now = NOW + DAY
    second = run(writing, other)
    assert stored_ids(database, user_id) == {first.memory.id, second.memory.id}


def test_concurrent_repetitions_get_one_reply(writing: Writing, database: Database, user_id: str) -> None:
    request = insert_request(user_id)
    ends = at_once([partial(run, writing, request)] * 8)
    [id_] = {end.result().memory.id for end in ends}
    assert stored_ids(database, user_id) == {id_}


def test_repetition_that_finds_the_world_changed_by_the_first_gets_its_reply(
    database: Database, clock: Clock, user_id: str
) -> None:
    request_id, called = uuid4(), []

    def carry_out(prepare: Callable[[], Callable[[Connection], pb.DeleteVectorResponse]]) -> pb.DeleteVectorResponse:
        key = RequestKey(user_id=user_id, request_id=request_id, request_hash=b"same", expires_at=clock() + DAY)
        call = database.call()
        return mutations.run(
            database, call, key, user_id=user_id, prepare=prepare, reply=pb.DeleteVectorResponse, now=clock()
        )

    def change(_: Connection) -> pb.DeleteVectorResponse:
        called.append("changed")
        return pb.DeleteVectorResponse(memory=pb.Memory(id="the one"))

    def overtaken() -> Callable[[Connection], pb.DeleteVectorResponse]:
        carry_out(lambda: change)  # the first call, between our look and now
        raise EtagMismatch("it has changed since")

    assert carry_out(overtaken).memory.id == "the one"
    assert called == ["changed"]


def test_call_that_failed_can_be_repeated(writing: Writing, embedder: SampleEmbedder, user_id: str) -> None:
    request = insert_request(user_id)
    embedder.error = EmbedderUnavailable("it is down", retry_after_s=1.0)
    with pytest.raises(EmbedderUnavailable):
        run(writing, request)
    embedder.error = None
    assert run(writing, request).memory.content == "first"


def test_repeated_deletion_succeeds(writing: Writing, database: Database, user_id: str) -> None:
    id_ = insert(writing, user_id).id
    request = pb.DeleteVectorRequest(user_id=user_id, id=id_, hard=True, request_id=str(uuid4()))
    first = writing.delete(request, database.call())
    assert writing.delete(request, database.call()) == first
    assert first.memory.id == id_
    with pytest.raises(MemoryNotFound):
        writing.delete(pb.DeleteVectorRequest(user_id=user_id, id=id_), database.call())
    missing = pb.DeleteVectorRequest(user_id=user_id, id=id_, allow_missing=True)
    assert writing.delete(missing, database.call()) == pb.DeleteVectorResponse()


def test_restored_memory_is_told_whole(writing: Writing, database: Database, clock: Clock, user_id: str) -> None:
    before = insert(writing, user_id, summary="s", metadata=to_struct({"a": 1}))
    deleted = writing.delete(pb.DeleteVectorRequest(user_id=user_id, id=before.id), database.call()).memory
    assert deleted.purge_at.ToDatetime(UTC) == NOW + 30 * DAY
    clock.now = LATER
    request = pb.RestoreVectorRequest(user_id=user_id, id=before.id, etag=deleted.etag)
    after = writing.restore(request, database.call()).memory
    assert after.updated_at.ToDatetime(UTC) == LATER
    assert after.etag != before.etag
    after.etag, after.updated_at.seconds = before.etag, before.updated_at.seconds
    assert after == before


def test_repeated_ids_of_a_batch_are_named(writing: Writing, database: Database, user_id: str) -> None:
    twice = str(uuid4())
    memories = [pb.NewMemory(content="a", id=id_) for id_ in (twice, "", twice.upper(), str(uuid4()))]
    with pytest.raises(InvalidArgument) as caught:
        writing.insert_batch(pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories), database.call())
    [violation] = caught.value.violations
    assert (violation.field, violation.description) == ("memories[2].id", "is the same as memories[0].id")
    assert stored_ids(database, user_id) == set()


def test_only_changed_content_is_embedded(
    writing: Writing, embedder: SampleEmbedder, database: Database, user_id: str
) -> None:
    id_ = insert(writing, user_id).id
    update(writing, user_id, id_, content="first", summary="s")
    assert embedder.asked == [["first"]]
    assert_embedded(database, user_id, id_, "first")
    update(writing, user_id, id_, content="second")
    assert_embedded(database, user_id, id_, "second")
    update(writing, user_id, id_, mask="embedding")
    assert embedder.asked == [["first"], ["second"], ["second"]]


def test_stored_content_is_charged_before_it_is_embedded_anew(
    writing: Writing, embedder: SampleEmbedder, user_id: str
) -> None:
    charged: list[str] = []
    writing = replace(writing, charge=charged.append)
    id_ = insert(writing, user_id).id
    update(writing, user_id, id_, content="second")
    assert charged == [], "what a request shows is charged where it is let in"
    update(writing, user_id, id_, mask="embedding")
    assert charged == ["second"]

    def refuse(_: str) -> None:
        raise LimitExceeded("too much", limit="MEMORY_RATE_LIMIT_TOKENS_PER_USER", retry_after_s=1.0)

    with pytest.raises(LimitExceeded):
        update(replace(writing, charge=refuse), user_id, id_, mask="embedding")
    assert embedder.asked == [["first"], ["second"], ["second"]]


def test_content_changed_while_it_was_embedded(
    writing: Writing, embedder: SampleEmbedder, database: Database, user_id: str
) -> None:
    id_ = insert(writing, user_id).id

    def meanwhile() -> None:
        embedder.meanwhile = lambda: None
        update(writing, user_id, id_, content="theirs")

    embedder.meanwhile = meanwhile
    with pytest.raises(Conflict):
        update(writing, user_id, id_, mask="embedding,summary", summary="mine")
    found = read(database, user_id, UUID(id_))
    assert (found.content, found.summary, found.version) == ("theirs", "", 2)
    assert_embedded(database, user_id, id_, "theirs")


class Meanwhile(NoQuotas):
    """Lets something happen between a write's first look and the write itself."""

    def __init__(self, happen: Callable[[], object]) -> None:
        self._happen = happen

    def expect(self, user_id: str, adding: Callable[[], Usage], call: Call, *, certain: bool) -> Self:
        """Returns the room there is."""
        super().expect(user_id, adding, call, certain=certain)
        return self

    def enforced(self, conn: Connection, *, now: datetime) -> AbstractContextManager[None]:
        """Lets it happen."""
        self._happen()
        return super().enforced(conn, now=now)


def test_content_sent_as_it_was_does_not_give_way_to_another(
    writing: Writing, database: Database, user_id: str
) -> None:
    id_ = insert(writing, user_id).id
    overtaken = replace(writing, quotas=Meanwhile(lambda: update(writing, user_id, id_, content="theirs")))
    with pytest.raises(Conflict):
        update(overtaken, user_id, id_, content="first", summary="mine")
    found = read(database, user_id, UUID(id_))
    assert (found.content, found.summary, found.version) == ("theirs", "", 2)
    assert update(writing, user_id, id_, content="first", summary="mine").content == "first"


@pytest.mark.parametrize(("disappear", "error"), [(soft_delete, MemoryDeleted), (hard_delete, MemoryNotFound)])
def test_memory_gone_while_its_content_was_embedded(
    writing: Writing,
    embedder: SampleEmbedder,
    database: Database,
    user_id: str,
    *,
    disappear: Callable[[Database, str, UUID], object],
    error: type[Exception],
) -> None:
    id_ = insert(writing, user_id).id
    embedder.meanwhile = lambda: disappear(database, user_id, UUID(id_))
    with pytest.raises(error):
        update(writing, user_id, id_, content="second")


def test_stale_etag_costs_nothing_stored(writing: Writing, database: Database, user_id: str) -> None:
    memory = insert(writing, user_id)
    update(writing, user_id, memory.id, content="second")
    request = pb.UpdateVectorRequest(user_id=user_id, id=memory.id, memory=pb.Memory(content="third"), etag=memory.etag)
    with pytest.raises(EtagMismatch):
        writing.update(request, database.call())
    assert_embedded(database, user_id, memory.id, "second")


def test_update_in_vain_embeds_nothing(
    writing: Writing, embedder: SampleEmbedder, database: Database, user_id: str
) -> None:
    stale = insert(writing, user_id)
    fresh = update(writing, user_id, stale.id, summary="s")
    changed = pb.Memory(content="third")
    for etag, error in ((stale.etag, EtagMismatch), (fresh.etag, MemoryDeleted), ("", MemoryDeleted)):
        request = pb.UpdateVectorRequest(user_id=user_id, id=stale.id, memory=changed, etag=etag)
        if error is MemoryDeleted and etag:
            deleted = writing.delete(pb.DeleteVectorRequest(user_id=user_id, id=stale.id), database.call()).memory
            request.etag = deleted.etag
        with pytest.raises(error):
            writing.update(request, database.call())
    assert embedder.asked == [["first"]]


def test_merge_beyond_the_limit_writes_nothing(writing: Writing, database: Database, user_id: str) -> None:
    half = "x" * (writing.limits.max_metadata_bytes // 2)
    id_ = insert(writing, user_id, metadata=to_struct({"a": half})).id
    with pytest.raises(InvalidArgument) as caught:
        update(writing, user_id, id_, metadata=to_struct({"b": half}), summary="new")
    [violation] = caught.value.violations
    assert violation.field == "memory.metadata"
    assert f"at most {writing.limits.max_metadata_bytes} are allowed" in violation.description
    found = read(database, user_id, UUID(id_))
    assert (found.metadata, found.summary, found.version) == ({"a": half}, "", 1)
    update(writing, user_id, id_, metadata=to_struct({"a": None, "b": half}))
    assert read(database, user_id, UUID(id_)).metadata == {"b": half}


def test_large_numbers_do_not_swell_in_the_database(writing: Writing, database: Database, user_id: str) -> None:
    # PostgreSQL writes 1e308 in 309 digits; 2,000 of them were 12 KB when they came.
    id_ = insert(writing, user_id, metadata=to_struct({"n": [1e308] * 2_000})).id
    update(writing, user_id, id_, importance=7, metadata=to_struct({"m": 1}))
    assert read(database, user_id, UUID(id_)).metadata == {"n": [1e308] * 2_000, "m": 1}


def test_refused_text_is_named_by_its_field(
    writing: Writing, embedder: SampleEmbedder, database: Database, user_id: str
) -> None:
    vector = pb.Vector(floats=pb.FloatArray(values=[1.0] * DIMENSIONS))
    memories = [
        pb.NewMemory(content="a"),
        pb.NewMemory(embedding=vector),
        pb.NewMemory(content="c", embed_text="bad"),
        pb.NewMemory(content="bad"),
    ]
    embedder.refused = {"bad"}
    with pytest.raises(InvalidArgument) as caught:
        writing.insert_batch(pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories), database.call())
    [violation] = caught.value.violations
    assert (violation.field, violation.description) == ("memories[2].embed_text", "is refused")
    assert violation.reason == pb.ERROR_REASON_TEXT_NOT_EMBEDDABLE
    assert stored_ids(database, user_id) == set()


def test_batch_is_embedded_in_one_request(
    writing: Writing, embedder: SampleEmbedder, database: Database, user_id: str
) -> None:
    vector = pb.Vector(floats=pb.FloatArray(values=[1.0] * DIMENSIONS))
    memories = [
        pb.NewMemory(content="a"),
        pb.NewMemory(content="b", embedding=vector),
        pb.NewMemory(content="c", embed_text="d"),
    ]
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)
    results = writing.insert_batch(request, database.call()).results
    assert embedder.asked == [["a", "d"]]
    assert_embedded(database, user_id, results[0].id, "a")
    assert_embedded(database, user_id, results[2].id, "d")
    given = read(database, user_id, UUID(results[1].id))
    assert given.embedding_model == "caller"
    assert given.embedding is not None
    assert given.embedding.original().tolist() == pytest.approx([1.0] * DIMENSIONS, rel=1e-3)
