"""Messages to send: embeddings, memories, and the memories of a user made from them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import ArrayLike

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import TIMEOUT_S
from tests.fix_database import DIMENSIONS


def floats(values: ArrayLike) -> pb.Vector:
    """Returns an embedding of plain numbers."""
    return pb.Vector(floats=pb.FloatArray(values=np.asarray(values, np.float32)))


def f32(values: ArrayLike) -> pb.Vector:
    """Returns an embedding in binary32."""
    return pb.Vector(f32_le=np.asarray(values, "<f4").tobytes())


def f16(values: ArrayLike) -> pb.Vector:
    """Returns an embedding in binary16."""
    return pb.Vector(f16_le=np.asarray(values, "<f2").tobytes())


def axis(position: int, length: float = 1.0) -> pb.Vector:
    """Returns the embedding along one axis: different ones are at right angles."""
    return floats(np.eye(DIMENSIONS)[position] * length)


def struct(values: dict[str, Any]) -> Struct:
    """Returns metadata."""
    message = Struct()
    message.update(values)
    return message


def timestamp(value: datetime) -> Timestamp:
    """Returns a point in time."""
    message = Timestamp()
    message.FromDatetime(value)
    return message


def new_memory(content: str = "", **fields: Any) -> pb.NewMemory:
    """Returns a memory to store; its embedding, unless given, points along the first axis."""
    if isinstance(fields.get("metadata"), dict):
        fields["metadata"] = struct(fields["metadata"])
    return pb.NewMemory(content=content, **{"embedding": axis(0), **fields})


def insert(stub: MemoryServiceStub, user_id: str, content: str = "", **fields: Any) -> pb.Memory:
    """Stores a memory and returns it as the reply shows it."""
    request = pb.InsertVectorRequest(user_id=user_id, memory=new_memory(content, **fields))
    return stub.InsertVector(request, timeout=TIMEOUT_S).memory


def insert_all(stub: MemoryServiceStub, user_id: str, memories: Sequence[pb.NewMemory]) -> list[str]:
    """Stores memories in one batch and returns their ids."""
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)
    return [result.id for result in stub.BatchInsertVectors(request, timeout=TIMEOUT_S).results]


def get(stub: MemoryServiceStub, user_id: str, memory_id: str, **fields: Any) -> pb.Memory:
    """Reads a memory without counting the access."""
    request = pb.GetVectorRequest(user_id=user_id, id=memory_id, **{"skip_access_recording": True, **fields})
    return stub.GetVector(request, timeout=TIMEOUT_S).memory


def stats(stub: MemoryServiceStub, user_id: str) -> pb.GetStatsResponse:
    """Returns what the user has stored."""
    return stub.GetStats(pb.GetStatsRequest(user_id=user_id), timeout=TIMEOUT_S)


def values_of(vector: pb.Vector) -> list[float]:
    """Returns the numbers of an embedding in any encoding."""
    match vector.WhichOneof("encoding"):
        case "f32_le":
            return [float(value) for value in np.frombuffer(vector.f32_le, "<f4")]
        case "f16_le":
            return [float(value) for value in np.frombuffer(vector.f16_le, "<f2")]
        case _:
            return list(vector.floats.values)
