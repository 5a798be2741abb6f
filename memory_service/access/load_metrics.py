"""How many calls of each kind there are: the gauges of their threads."""

from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from memory_service.access.call_threads import CallThreads

KINDS = ("read", "write", "admin", "import")


class LoadMetrics:
    """Calls that are worked on or wait, by kind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Gauge(
            "memory_calls",
            "Calls worked on or waiting for a thread, by kind: read, write, admin, import.",
            ("kind",),
            registry=registry,
        )
        self._calls = {kind: calls.labels(kind) for kind in KINDS}

    def watch(self, threads: CallThreads) -> None:
        """Reports the calls of these threads from now on."""
        self._calls[threads.kind].set_function(partial(getattr, threads, "calls"))
