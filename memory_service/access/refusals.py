"""Calls that a limit turned away: counted by the limit, and told to the log once a second at most."""

import threading
import time
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter

log = structlog.get_logger(__name__)

TELL_EVERY_S = 1.0

LIMITS = (
    "MEMORY_THREADS",
    "MEMORY_WRITE_THREADS",
    "MEMORY_ADMIN_THREADS",
    "MEMORY_IMPORT_STREAMS",
    "MEMORY_QUEUE_TIMEOUT_S",
    "MEMORY_RATE_LIMIT_REQUESTS_PER_KEY",
    "MEMORY_RATE_LIMIT_REQUESTS_PER_USER",
    "MEMORY_RATE_LIMIT_TOKENS_PER_KEY",
    "MEMORY_RATE_LIMIT_TOKENS_PER_USER",
    "MEMORY_RATE_LIMIT_UNAUTHENTICATED_PER_PEER",
    "MEMORY_QUOTA_MEMORIES",
    "MEMORY_QUOTA_BYTES",
)


class Refusals:
    """Takes note of calls turned away. A line for each would cost more than turning it away does."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        counter = Counter(
            "memory_refused_total",
            "Calls and chunks of imports that were turned away, by the setting that limits them.",
            ("limit",),
            registry=registry,
        )
        self._counters = {limit: counter.labels(limit) for limit in LIMITS}
        self._clock = clock
        self._lock = threading.Lock()
        self._untold: dict[str, int] = {}
        self._told_at = -TELL_EVERY_S

    def count(self, limit: str) -> None:
        """Takes note of a call that ran into the limit of this name."""
        self._counters[limit].inc()
        with self._lock:
            self._untold[limit] = self._untold.get(limit, 0) + 1
            if self._clock() - self._told_at < TELL_EVERY_S:
                return
            self._told_at = self._clock()
            untold, self._untold = self._untold, {}
        log.warning("calls_refused", **{name.removeprefix("MEMORY_").lower(): count for name, count in untold.items()})


CountRefusal = Callable[[str], None]
"""Refusals.count, or what stands in for it."""


def uncounted(_: str) -> None:
    """Counts nothing, for servers without metrics."""
