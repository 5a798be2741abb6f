"""Keeping kinds of calls apart: reads, writes and administration have threads and queues of their own.

A kind that is slow, such as writes that wait for an embedding provider, fills its own threads and leaves the others
theirs. Imports have theirs in memory_service/import_streams.py.
"""

from memory_service.access.call_threads import CallThreads
from memory_service.access.errors import Overloaded
from memory_service.config import Settings

SERVICE = "/memory_service.v1.MemoryService/"

WRITES = frozenset(
    SERVICE + name for name in ("InsertVector", "BatchInsertVectors", "UpdateVector", "DeleteVector", "RestoreVector")
)


class Bulkheads:
    """The threads of each kind of calls."""

    def __init__(self, settings: Settings) -> None:
        def threads(kind: str, count: int, setting: str) -> CallThreads:
            return CallThreads(kind, threads=count, queue=settings.queue_calls, setting=setting)

        self._queue_timeout_s = settings.queue_timeout_s
        self.reads = threads("read", settings.threads_for_reads, "MEMORY_THREADS")
        self._writes = threads("write", settings.threads_for_writes, "MEMORY_WRITE_THREADS")
        self._administration = threads("admin", settings.admin_threads, "MEMORY_ADMIN_THREADS")

    def require_short_wait(self, threads: CallThreads) -> None:
        """Refuses a call, on its thread, that has waited too long for it.

        Whoever called has little of its deadline left, and those behind have waited nearly as long: without this, an
        overloaded service is busy with calls that nobody waits for any more.

        Raises:
            Overloaded: Then.
        """
        if threads.waited_s > self._queue_timeout_s:
            message = f"waited {self._queue_timeout_s:g} s for a thread for {threads.kind} calls"
            raise Overloaded(message, limit="MEMORY_QUEUE_TIMEOUT_S")

    @property
    def all(self) -> tuple[CallThreads, ...]:
        """The threads of all kinds."""
        return (self.reads, self._writes, self._administration)

    def of(self, method: str) -> CallThreads:
        """Returns the threads for a method, /memory_service.v1.MemoryService/InsertVector and so on."""
        if method in WRITES:
            return self._writes
        # Other services of this package are for administrators, and nothing that others may call is among them.
        if not method.startswith(SERVICE):
            return self._administration
        return self.reads

    def close(self) -> None:
        """Lets go of the threads; calls that wait for one are dropped."""
        for each in self.all:
            each.shutdown(wait=False, cancel_futures=True)
