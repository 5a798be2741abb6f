"""Sending the chunks of an import, and again those that a broken stream left unacknowledged."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from memory_service.bulk.call_failure import CallFailure, failure_of
from memory_service.bulk.chunks import Chunk
from memory_service.bulk.errors import BadRecord, TransferError
from memory_service.bulk.retrying import Retrying
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

# Read and sent ahead of the acknowledgements: enough to keep the server busy, and all that is kept to be sent again.
MAX_UNACKNOWLEDGED = 4

Acknowledged = Callable[[Chunk, pb.ImportVectorsResponse], None]


class Upload:
    """One import; `acknowledged` is called for each chunk, in order."""

    def __init__(
        self, stub: MemoryServiceStub, chunks: Iterator[Chunk], *, acknowledged: Acknowledged, retrying: Retrying
    ) -> None:
        self._stub = stub
        self._chunks = chunks
        self._acknowledged = acknowledged
        self._retrying = retrying
        self._changed = threading.Condition()
        self._unacknowledged: deque[Chunk] = deque()
        self._sent = 0
        """How many of them the current stream has been given."""
        self._attempt: object = None
        """Which stream is the current one: gRPC's thread that feeds it may outlive it."""
        self._read_all = False
        self._read_error: BaseException | None = None
        self._ended = False

    def run(self) -> None:
        """Sends everything.

        Raises:
            BadRecord: When a memory cannot be read, or the server refuses it; what came before its chunk is stored.
            TransferError: When the server refuses a chunk for another reason, or cannot be reached again.
        """
        threading.Thread(target=self._read_ahead, name="read-ahead", daemon=True).start()
        try:
            while not self._send():
                pass
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        if self._read_error is not None:
            raise self._read_error
        if self._unacknowledged:
            raise TransferError("the server ended the import before everything was acknowledged")

    def _read_ahead(self) -> None:
        try:
            for chunk in self._chunks:
                with self._changed:
                    self._unacknowledged.append(chunk)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._ended or len(self._unacknowledged) < MAX_UNACKNOWLEDGED)
                    if self._ended:
                        return
        except BaseException as error:  # noqa: BLE001 - raised again by `run`, after what came before it
            self._read_error = error
        finally:
            with self._changed:
                self._read_all = True
                self._changed.notify_all()

    def _send(self) -> bool:
        """Sends what is not acknowledged yet over a stream of its own; returns whether that went well."""
        attempt = object()
        with self._changed:
            self._attempt = attempt
            self._sent = 0
        call = self._stub.ImportVectors(self._requests(attempt))
        try:
            for reply in call:
                self._acknowledge(reply)
        except grpc.RpcError as error:
            failure = failure_of(error)
            self._raise_for_record(failure)
            self._retrying.wait(failure)
            return False
        finally:
            with self._changed:
                self._attempt = None
                self._changed.notify_all()
            call.cancel()
        return True

    def _requests(self, attempt: object) -> Iterator[pb.ImportVectorsRequest]:
        while (chunk := self._next(attempt)) is not None:
            yield chunk.request

    def _next(self, attempt: object) -> Chunk | None:
        """Returns the next chunk to send, None at the end of the file or of the attempt."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._attempt is not attempt or self._sent < len(self._unacknowledged) or self._read_all
            )
            if self._attempt is not attempt or self._sent == len(self._unacknowledged):
                return None
            self._sent += 1
            return self._unacknowledged[self._sent - 1]

    def _acknowledge(self, reply: pb.ImportVectorsResponse) -> None:
        with self._changed:
            if not self._sent or self._unacknowledged[0].request.chunk != reply.chunk:
                raise TransferError(f"the server acknowledged chunk {reply.chunk} out of order")
            chunk = self._unacknowledged.popleft()
            self._sent -= 1
            self._changed.notify_all()
        self._retrying.progressed()
        self._acknowledged(chunk, reply)

    def _raise_for_record(self, failure: CallFailure) -> None:
        """Raises BadRecord where the server names a memory, by its place in the file."""
        if failure.reason == "REQUEST_ID_REUSED":
            raise TransferError(
                "an import of this id has other memories there: another --chunk-size, --keep-ids, --embed-async or "
                "file. Repeat the command as it was, or give another --import-id to store everything anew"
            )
        number = failure.facts.get("chunk", "")
        for chunk in self._unacknowledged:
            if str(chunk.request.chunk) == number and failure.violations:
                path, description = failure.violations[0]
                raise BadRecord(*_place(chunk, path, description))


def _place(chunk: Chunk, path: str, description: str) -> tuple[str, str]:
    """Translates "memories[3].embedding" into a place of the file and a field of its record."""
    index, bracket, field = path.removeprefix("memories[").partition("]")
    if not bracket or not index.isdigit():
        return f"{chunk.places[0]} to {chunk.places[-1]}", f"{path} {description}"
    return chunk.places[int(index)], f"{field.removeprefix('.')}: {description}"
