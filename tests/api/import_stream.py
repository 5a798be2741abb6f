"""An ImportVectors stream that a test feeds chunk by chunk, and memories to feed it with."""

import queue
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import TIMEOUT_S, Failure, failure
from tests.api.messages import new_memory, stats


class ImportStream:
    """One stream; `send` gives chunks ascending numbers from `first` on."""

    def __init__(
        self,
        stub: MemoryServiceStub,
        user_id: str,
        *,
        import_id: str | None = None,
        first: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.user_id = user_id
        self.import_id = str(uuid4()) if import_id is None else import_id
        self._number = first
        self._requests: queue.SimpleQueue[pb.ImportVectorsRequest | None] = queue.SimpleQueue()
        self.call: Any = stub.ImportVectors(iter(self._requests.get, None), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        self.call.cancel()

    def send(self, memories: Sequence[pb.NewMemory], **fields: Any) -> None:
        """Sends the next chunk, its fields as they should be unless given."""
        usual = {"user_id": self.user_id, "import_id": self.import_id, "chunk": self._number}
        self._requests.put(pb.ImportVectorsRequest(**{**usual, **fields}, memories=memories))
        self._number += 1

    def store(self, memories: Sequence[pb.NewMemory]) -> pb.ImportVectorsResponse:
        """Sends the next chunk and returns its acknowledgement."""
        self.send(memories)
        return self.acknowledgement()

    def acknowledgement(self) -> pb.ImportVectorsResponse:
        """Returns the next acknowledgement."""
        reply: pb.ImportVectorsResponse = next(self.call)
        return reply

    def failure(self) -> Failure:
        """Returns how the stream fails, in place of a further acknowledgement."""
        return failure(lambda: next(self.call))

    def end(self) -> None:
        """Sends nothing more."""
        self._requests.put(None)

    def rest(self) -> list[pb.ImportVectorsResponse]:
        """Sends nothing more, and returns the acknowledgements until the stream's end."""
        self.end()
        return list(self.call)


def import_all(
    stub: MemoryServiceStub, user_id: str, chunks: Sequence[Sequence[pb.NewMemory]], *, import_id: str | None = None
) -> list[pb.ImportVectorsResponse]:
    """Imports chunks over one stream and returns their acknowledgements."""
    stream = ImportStream(stub, user_id, import_id=import_id)
    for chunk in chunks:
        stream.send(chunk)
    return stream.rest()


def some(count: int, **fields: Any) -> list[pb.NewMemory]:
    """Returns memories to import, each with a content of its own."""
    return [new_memory(f"memory {index} {uuid4().hex[:6]}", **fields) for index in range(count)]


def count(stub: MemoryServiceStub, user_id: str) -> int:
    """Returns how many live memories a user has."""
    return stats(stub, user_id).live_count
