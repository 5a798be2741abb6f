"""ImportVectors: what is refused, under which field and which code, and what of the stream is stored by then."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.api.conftest import ReadContents
from tests.api.import_stream import ImportStream, count, import_all, some
from tests.api.messages import axis, f16, f32, floats, insert, new_memory, stats, timestamp


def test_other_content_under_the_same_number_is_refused(
    stub: MemoryServiceStub, user_id: str, contents: ReadContents
) -> None:
    import_id = str(uuid4())
    import_all(stub, user_id, [some(2), some(2)], import_id=import_id)
    before = contents()
    with ImportStream(stub, user_id, import_id=import_id, first=1) as stream:
        stream.send(some(2))
        failure = stream.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert failure.message == "chunk 1: was stored before with other content"
    assert failure.facts["chunk"] == "1"
    assert contents() == before


@pytest.mark.parametrize(
    ("wrong", "path", "reason", "description"),
    [
        ({"embedding": f32([1.0] * 9)}, "embedding", "DIMENSION_MISMATCH", "has 9 dimensions, expected 8"),
        ({"embedding": f16([1.0] * 7)}, "embedding", "DIMENSION_MISMATCH", "has 7 dimensions, expected 8"),
        ({"embedding": floats([])}, "embedding", "DIMENSION_MISMATCH", "has 0 dimensions, expected 8"),
        ({"embedding": pb.Vector()}, "embedding", "INVALID_FIELD", "is empty"),
        ({"embedding": pb.Vector(f32_le=b"123")}, "embedding.f32_le", "INVALID_FIELD", "has 3 bytes"),
        ({"embedding": f32([0.0] * 8)}, "embedding", "INVALID_FIELD", "zero vector"),
        ({"embedding": f32([1.0] * 7 + [np.nan])}, "embedding", "INVALID_FIELD", "is NaN at position 7"),
        ({"embedding": f16([np.inf] + [1.0] * 7)}, "embedding", "INVALID_FIELD", "is infinite at position 0"),
        ({"embedding": floats([1.0, -np.inf] * 4)}, "embedding", "INVALID_FIELD", "is infinite at position 1"),
        ({"embedding": None}, "content", "EMBEDDER_DISABLED", "cannot be embedded"),
        ({"embed_text": "twice"}, "embed_text", "INVALID_FIELD", "together with embedding"),
        ({"id": "no-uuid"}, "id", "INVALID_FIELD", "is not a UUID"),
        ({"importance": 11}, "importance", "INVALID_FIELD", "expected 1 to 10"),
        ({"summary": "a\0b"}, "summary", "INVALID_FIELD", "NUL"),
        ({"conversation_id": "c" * 256}, "conversation_id", "INVALID_FIELD", "has 256 characters"),
        (
            {"created_at": timestamp(datetime(2999, 1, 1, tzinfo=UTC))},
            "created_at",
            "INVALID_FIELD",
            "more than a day in the future",
        ),
    ],
)
def test_a_bad_memory_is_named_and_its_chunk_not_stored(  # noqa: PLR0917 - parameters of the test and fixtures
    stub: MemoryServiceStub, user_id: str, wrong: dict[str, Any], path: str, reason: str, description: str
) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.send(some(2))
        stream.send([*some(3), new_memory("bad", **wrong), *some(2)])
        stream.send(some(2))
        assert stream.acknowledgement().chunk == 0
        failure = stream.failure()
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == reason
    assert failure.facts["chunk"] == "1"
    assert failure.message.startswith(f"chunk 1: memories[3].{path}: ")
    assert [*failure.violations] == [f"memories[3].{path}"]
    assert description in failure.violations[f"memories[3].{path}"]
    assert count(stub, user_id) == 2


def test_the_first_of_several_faults_leads(stub: MemoryServiceStub, user_id: str) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.send(
            [
                new_memory("fine"),
                new_memory("zero", embedding=axis(0, 0.0)),
                new_memory("high", importance=99),
                new_memory("short", embedding=f32([1.0])),
            ]
        )
        failure = stream.failure()
    assert [*failure.violations] == ["memories[1].embedding", "memories[2].importance", "memories[3].embedding"]
    assert failure.reason == "INVALID_FIELD"
    assert failure.message.endswith("(and 2 more)")


def test_an_id_twice_in_a_chunk(stub: MemoryServiceStub, user_id: str) -> None:
    twice = str(uuid4())
    with ImportStream(stub, user_id) as stream:
        stream.send([new_memory("a", id=twice), new_memory("b"), new_memory("c", id=twice)])
        failure = stream.failure()
    assert failure.violations == {"memories[2].id": "is the same as memories[0].id"}
    assert count(stub, user_id) == 0


@pytest.mark.parametrize("deleted", [False, True])
def test_a_taken_id_is_named_and_its_chunk_not_stored(stub: MemoryServiceStub, user_id: str, *, deleted: bool) -> None:
    taken = insert(stub, user_id, "was here first").id
    if deleted:
        send(stub, pb.DeleteVectorRequest(user_id=user_id, id=taken))
    before = stats(stub, user_id)
    with ImportStream(stub, user_id) as stream:
        stream.store(some(2))
        stream.send([*some(2, conversation_id="new"), new_memory("late", id=taken), *some(2)])
        failure = stream.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS")
    assert failure.message == f"chunk 1: the user has a memory {taken} already"
    assert [*failure.violations] == ["memories[2].id"]
    assert failure.facts["chunk"] == "1"
    after = stats(stub, user_id)
    assert after.live_count == before.live_count + 2
    assert {conversation.conversation_id for conversation in after.conversations} == {""}


def test_a_mended_chunk_is_accepted_under_the_same_number(stub: MemoryServiceStub, user_id: str) -> None:
    taken = insert(stub, user_id, "was here first").id
    import_id = str(uuid4())
    for wrong in ({"id": taken}, {"importance": 0}):
        with ImportStream(stub, user_id, import_id=import_id) as stream:
            stream.send([new_memory("a", **wrong)])
            stream.failure()
    [reply] = import_all(stub, user_id, [some(1)], import_id=import_id)
    assert not reply.already_stored


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"user_id": "somebody else"}, "user_id"),
        ({"import_id": "5e0f1a90-0000-4000-8000-000000000000"}, "import_id"),
        ({"chunk": 7}, "chunk"),
        ({"chunk": 6}, "chunk"),
        ({"chunk": -1}, "chunk"),
        ({"user_id": ""}, "user_id"),
        ({"import_id": ""}, "import_id"),
    ],
    ids=str,
)
def test_a_chunk_that_does_not_follow_from_the_one_before(
    stub: MemoryServiceStub, user_id: str, wrong: dict[str, Any], path: str
) -> None:
    with ImportStream(stub, user_id, first=7) as stream:
        stream.store(some(1))
        stream.send(some(1), **wrong)
        failure = stream.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert path in failure.violations
    assert count(stub, user_id) == 1


@pytest.mark.parametrize(
    ("wrong", "path", "description"),
    [
        ({"user_id": ""}, "user_id", "is required"),
        ({"user_id": "u" * 256}, "user_id", "has 256 characters"),
        ({"import_id": ""}, "import_id", "is required"),
        ({"import_id": "import"}, "import_id", "is not a UUID"),
        ({"chunk": -1}, "chunk", "is -1, expected 0 to"),
    ],
    ids=str,
)
def test_a_first_chunk_that_names_nothing(
    stub: MemoryServiceStub, user_id: str, wrong: dict[str, Any], path: str, description: str
) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.send(some(1), **wrong)
        failure = stream.failure()
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert description in failure.violations[path]


def test_limits_of_a_chunk(stub: MemoryServiceStub, user_id: str) -> None:
    limits = send(stub, pb.GetServerInfoRequest()).limits
    memory = new_memory("m")
    with ImportStream(stub, user_id) as stream:
        stream.store([memory] * limits.max_import_chunk_size)
        stream.send([memory] * (limits.max_import_chunk_size + 1))
        failure = stream.failure()
    assert failure.violations == {
        "memories": f"is {limits.max_import_chunk_size + 1}, expected 1 to {limits.max_import_chunk_size}"
    }
    with ImportStream(stub, user_id) as stream:
        stream.send([])
        assert "memories" in stream.failure().violations
    large = new_memory("x" * limits.max_content_bytes)
    with ImportStream(stub, user_id) as stream:
        stream.send([large] * (limits.max_batch_bytes // limits.max_content_bytes))
        failure = stream.failure()
    assert f"at most {limits.max_batch_bytes} are allowed" in failure.violations["memories"]
    assert count(stub, user_id) == limits.max_import_chunk_size


def test_bytes_that_are_no_message(stub: MemoryServiceStub, user_id: str, server: Any) -> None:
    method = server.channel.stream_stream(
        "/memory_service.v1.MemoryService/ImportVectors", response_deserializer=pb.ImportVectorsResponse.FromString
    )
    good = pb.ImportVectorsRequest(user_id=user_id, import_id=str(uuid4()), memories=some(1)).SerializeToString()
    call = method(iter([good, b"\xff\xff"]), timeout=10)
    assert next(call).chunk == 0
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert count(stub, user_id) == 1
