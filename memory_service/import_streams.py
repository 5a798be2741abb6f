"""The threads that imports work on, apart from those of other calls, and how imports end when the server does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from memory_service.access.call_threads import CallThreads
from memory_service.access.errors import Overloaded
from memory_service.importing import Chunk
from memory_service.observed_call import ShuttingDown
from memory_service.read_ahead import ReadAhead

Chunks = ReadAhead[Chunk]

SETTING = "MEMORY_IMPORT_STREAMS"

# As long as a call may wait for its request (request_arrival.py).
IDLE_S = 60.0


class ImportStreams:
    """Admits so many imports at a time: each keeps a thread while it lasts, and must not take those of searches."""

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._lock = threading.Lock()
        self._open: set[Chunks] = set()
        self._shutting_down = False
        # One more than streams, so that those beyond are refused at once and do not wait unseen. As many as streams may
        # wait for that: a stream's thread is free a moment later than its caller has the last reply.
        self.threads = CallThreads("import", threads=max_streams + 1, queue=max_streams, setting=SETTING)
        """Where ImportVectors runs."""

    @contextmanager
    def admit(self, stream: Iterator[Chunk]) -> Iterator[Chunks]:
        """Yields the chunks of an import, read one ahead.

        Raises:
            Overloaded: When there are as many imports as may be; also from the chunks, in place of the next one, when
                none has come for a minute and another import is there.
            ShuttingDown: When the server is; also from the chunks likewise.
        """
        chunks = ReadAhead(stream)
        with self._lock:
            if self._shutting_down:
                raise _shutting_down()
            if len(self._open) >= self._max_streams:
                self._end_idlest()
                message = f"all {self._max_streams} import streams of this server process are in use"
                raise Overloaded(message, limit=SETTING)
            self._open.add(chunks)
        try:
            with chunks:
                yield chunks
        finally:
            with self._lock:
                self._open.discard(chunks)

    def _end_idlest(self) -> None:
        """Ends the import that has sent nothing for the longest time, if that is long, unless one is ending already."""
        if any(chunks.has_ended for chunks in self._open):
            return
        idlest = max(self._open, key=lambda chunks: chunks.waited_s)
        if idlest.waited_s > IDLE_S:
            reason = f"gave way to another import after {IDLE_S:g} s without a chunk"
            idlest.end(Overloaded(f"{reason}; send the import again to resume it", limit=SETTING))

    def shut_down(self) -> None:
        """Ends every import after the chunk it is working on, and admits no more."""
        with self._lock:
            self._shutting_down = True
            for chunks in self._open:
                chunks.end(_shutting_down())

    def close(self) -> None:
        """Ends the imports and their threads."""
        self.shut_down()
        self.threads.shutdown(wait=False)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the server is shutting down; send the import again to resume it")
