"""What the server never writes into its log: what its users remember, and the operator's secrets."""

import uuid
from typing import Any

import grpc

from memory_service.v1 import memory_pb2 as pb
from tests.api.calls import send
from tests.api.messages import floats, new_memory, struct
from tests.api.with_provider.conftest import KEY
from tests.embedding.provider import TOO_LONG, Provider, Status
from tests.fix_server import ServerProcess, StartServer

# Runs of digits longer than the microseconds of a timestamp, so that nothing else prints them.
VECTOR = floats([0.7717171, 0.1313131, 0, 0, 0, 0, 0, 1])


def send_all(server: ServerProcess, requests: list[Any]) -> None:
    """Sends requests, whether they succeed or fail."""
    for request in requests:
        try:
            send(server.stub, request)
        except grpc.RpcError:
            continue


def test_memories_are_not_logged_at_any_level(start_server: StartServer, user_id: str) -> None:
    server = start_server(log_level="debug", slow_query_ms=0)
    memory_id, secret = str(uuid.uuid4()), "the-secret"
    memory = new_memory(f"{secret} content", summary=secret, metadata={secret: secret}, embedding=VECTOR, id=memory_id)
    insert = pb.InsertVectorRequest(user_id=user_id, memory=memory)
    update = pb.UpdateVectorRequest(
        user_id=user_id, id=memory_id, memory=pb.Memory(summary=secret, metadata=struct({secret: None}))
    )
    stale = pb.UpdateVectorRequest(user_id=user_id, id=memory_id, memory=pb.Memory(summary=secret), etag="stale")
    search = pb.SearchSimilarRequest(
        user_id=user_id, embedding=VECTOR, filter=pb.MemoryFilter(metadata_contains=struct({secret: secret}))
    )
    malformed = new_memory(f"{secret}\0", summary=f"{secret}\0", importance=99, embedding=VECTOR)
    taken = pb.BatchInsertVectorsRequest(user_id=user_id, memories=[memory])

    send_all(server, [insert, insert, taken, update, stale, search, pb.InsertVectorRequest(memory=malformed)])

    assert server.stop() == 0  # then all of the log has been read
    assert len(server.log.events("call")) == 7
    assert len(server.log.events("slow_query")) > 5
    assert secret not in server.log.text
    assert "7717171" not in server.log.text
    assert "1313131" not in server.log.text


def test_neither_texts_nor_the_key_are_logged(start_server: StartServer, user_id: str) -> None:
    with Provider(dimensions=8, api_key=KEY) as provider:
        server = start_server(
            embedder="openai",
            embedding_model="some-model",
            embedding_dimensions=8,
            openai_base_url=provider.base_url,
            openai_api_key=KEY,
            embedding_retries=1,
            log_level="debug",
        )
        provider.names_index = True
        provider.fail(
            Status(503, "the-secret"),
            Status(401, f"Incorrect API key provided: {KEY}"),
        )
        contents = ["the-secret one", "the-secret two", f"the-secret three {TOO_LONG}"]
        send_all(
            server,
            [pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text)) for text in contents]
            + [pb.SearchSimilarRequest(user_id=user_id, text="the-secret")],
        )

        assert len(provider.requests) >= 4
        assert server.stop() == 0
    assert len(server.log.events("call")) == 4
    assert "the-secret" not in server.log.text
    assert KEY not in server.log.text
