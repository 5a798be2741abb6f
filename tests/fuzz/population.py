"""What is stored before fuzzing begins, and the names by which requests reach it."""

import uuid
from contextlib import suppress
from dataclasses import dataclass

import grpc
import numpy as np

from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.admin_pb2_grpc import AdminServiceStub
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.messages import struct

USERS = tuple(f"fuzz-{number}" for number in range(3))
CONVERSATIONS = ("c0", "c1")
MEMORIES = 24
ERASED_USER = "fuzz-erased"
"""The one whom requests erase and give quotas: all others are to be there, and free to store, for those to come."""
NAMESPACE = uuid.UUID("0f3f8c52-6d0b-4a57-9d2b-6b1f5f7f3b11")
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Population:
    """Names that mean something to the server."""

    dimensions: int
    user_ids: tuple[str, ...]
    ids: tuple[str, ...]
    """Of memories, most of them the first user's: live, deleted, erased, and of nobody."""
    deleted_id: str
    etags: tuple[str, ...]
    page_tokens: tuple[str, ...]
    request_ids: tuple[str, ...]
    languages: tuple[str, ...]
    revoked_key_ids: tuple[str, ...]
    """API keys that requests may revoke."""
    key_ids: tuple[str, ...]
    """API keys for everything else."""


def replenish(channel: grpc.Channel, population: Population) -> None:
    """Brings back those of the first user's memories, and of the erased user's, that fuzzing has deleted."""
    stub = MemoryServiceStub(channel)
    for user_id in population.user_ids:  # a mutated request may name anybody
        AdminServiceStub(channel).SetUserQuota(admin_pb2.SetUserQuotaRequest(user_id=user_id), timeout=TIMEOUT_S)
    embedding = pb.Vector(f16_le=b"\0\x3c" * population.dimensions)
    for memory_id in population.ids:
        memory = pb.NewMemory(id=memory_id, content="Ada plays the cello once more", embedding=embedding)
        restore = pb.RestoreVectorRequest(user_id=USERS[0], id=memory_id)
        with suppress(grpc.RpcError):
            stub.InsertVector(pb.InsertVectorRequest(user_id=USERS[0], memory=memory), timeout=TIMEOUT_S)
        if memory_id != population.deleted_id:
            with suppress(grpc.RpcError):
                stub.RestoreVector(restore, timeout=TIMEOUT_S)
    memory = pb.NewMemory(content="Ada plays no more", conversation_id=CONVERSATIONS[0], embedding=embedding)
    with suppress(grpc.RpcError):
        stub.InsertVector(pb.InsertVectorRequest(user_id=ERASED_USER, memory=memory), timeout=TIMEOUT_S)


def populate(channel: grpc.Channel) -> Population:
    """Stores memories of every kind and returns their names."""
    stub = MemoryServiceStub(channel)
    info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=TIMEOUT_S)
    directions = np.random.default_rng(0).normal(size=(MEMORIES, info.embedding_dimensions)).astype("<f2")
    ids, etags, tokens = [str(uuid.uuid5(NAMESPACE, "nobody's"))], ["none"], []
    for user_id in USERS:
        memories = [
            pb.NewMemory(
                id=str(uuid.uuid5(NAMESPACE, f"{user_id} {number}")),
                content=f"Ada plays the cello in harbour {number}, and so do others",
                conversation_id=CONVERSATIONS[number % 2] if number % 3 else "",
                metadata=struct({"a": number, "b": {"c": [number, "x"]}}),
                embedding=pb.Vector(f16_le=directions[number].tobytes()),
            )
            for number in range(MEMORIES)
        ]
        reply = stub.BatchInsertVectors(
            pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories), timeout=TIMEOUT_S
        )
        stored = [result.id for result in reply.results]
        for memory_id, hard in zip(stored, (False, False, True), strict=False):
            stub.DeleteVector(pb.DeleteVectorRequest(user_id=user_id, id=memory_id, hard=hard), timeout=TIMEOUT_S)
        known = slice(0, 8 if user_id == USERS[0] else 1)
        ids += stored[known]
        etags += [result.etag for result in reply.results[known]]
        page = stub.GetRecent(pb.GetRecentRequest(user_id=user_id, page_size=3), timeout=TIMEOUT_S)
        tokens.append(page.next_page_token)
    return Population(
        dimensions=info.embedding_dimensions,
        user_ids=USERS,
        ids=tuple(ids),
        deleted_id=ids[1],
        etags=tuple(etags),
        page_tokens=tuple(tokens),
        request_ids=tuple(str(uuid.uuid5(NAMESPACE, f"request {number}")) for number in range(6)),
        languages=tuple(info.languages),
        revoked_key_ids=tuple(_new_key(channel, number) for number in range(3)),
        key_ids=tuple(_new_key(channel, number) for number in range(3)),
    )


def _new_key(channel: grpc.Channel, number: int) -> str:
    request = admin_pb2.CreateApiKeyRequest(name=f"fuzz {number}", role=admin_pb2.ROLE_READER, user_ids=USERS)
    return str(AdminServiceStub(channel).CreateApiKey(request, timeout=TIMEOUT_S).key.id)
