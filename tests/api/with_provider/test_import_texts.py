"""ImportVectors of texts: a chunk is embedded with one request, and one stored before with none."""

from uuid import uuid4

import grpc

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.import_stream import ImportStream, import_all
from tests.api.messages import axis, get, stats
from tests.api.with_provider.conftest import MODEL
from tests.api.with_provider.test_embedding_cache import assert_embeds
from tests.embedding.provider import Provider, Status


def test_a_chunk_is_embedded_with_one_request(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    chunks = [
        [pb.NewMemory(content=f"{text} {number % 20}") for number in range(40)],
        [
            pb.NewMemory(content=f"{text} 3"),
            pb.NewMemory(content="brings its own", embedding=axis(2)),
            pb.NewMemory(content="stored", embed_text=f"{text} other"),
        ],
    ]
    first, second = import_all(stub, user_id, chunks)

    assert [request.texts for request in provider.requests] == [
        [f"{text} {number}" for number in range(20)],
        [f"{text} other"],
    ]
    for memory, memory_id in zip(chunks[0], first.ids, strict=True):
        assert_embeds(stub, pb.Memory(user_id=user_id, id=memory_id), memory.content)
    assert_embeds(stub, pb.Memory(user_id=user_id, id=second.ids[2]), f"{text} other")
    assert [get(stub, user_id, memory_id).embedding_model for memory_id in second.ids] == [MODEL, "caller", MODEL]


def test_a_refused_text_is_named(stub: MemoryServiceStub, user_id: str, text: str, provider: Provider) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.store([pb.NewMemory(content=text)])
        stream.send([pb.NewMemory(content="own", embedding=axis(0)), pb.NewMemory(content=" \n")])
        failure = stream.failure()
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [*failure.violations] == ["memories[1].content"]
    assert len(provider.requests) == 1
    assert stats(stub, user_id).live_count == 1


def test_while_the_provider_is_down_what_was_stored_is_skipped(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    import_id = str(uuid4())
    chunks = [[pb.NewMemory(content=f"{text} {number}")] for number in range(3)]
    import_all(stub, user_id, chunks[:2], import_id=import_id)
    provider.fail(Status(503))
    with ImportStream(stub, user_id, import_id=import_id) as stream:
        assert stream.store(chunks[0]).already_stored
        assert stream.store(chunks[1]).already_stored
        stream.send(chunks[2])
        failure = stream.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE")
    assert failure.message.startswith("chunk 2: ")
    assert failure.retry_after_s is not None
    replies = import_all(stub, user_id, chunks, import_id=import_id)
    assert [reply.already_stored for reply in replies] == [True, True, False]
