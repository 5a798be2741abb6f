"""What is read when somebody asks for metrics: the pool, the access buffer, the tuning and the indexes."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from db.access import AccessBuffer
from db.ann_catalog import IndexInfo, IndexState
from db.embedding_queue_state import QueueCounts
from db.errors import DatabaseError
from db.pool import Database
from db.reembedding import Phase, Progress, Reembedding
from db.search_tuning import TuningState
from db.stored_state import StoredState, read_stored_state
from db.wall import ACROSS_USERS

Kind = Literal["gauge", "counter"]

# psycopg_pool's own counters. It counts milliseconds, and leaves out what is 0.
POOL: dict[str, tuple[Kind, str, str, float]] = {
    "pool_min": ("gauge", "min_size", "Database connections kept open.", 1),
    "pool_max": ("gauge", "max_size", "Most database connections there may be.", 1),
    "pool_size": ("gauge", "size", "Database connections there are.", 1),
    "pool_available": ("gauge", "available", "Database connections nobody uses.", 1),
    "requests_waiting": ("gauge", "requests_waiting", "Calls waiting for a database connection.", 1),
    "requests_num": ("counter", "requests", "Database connections asked for.", 1),
    "requests_queued": ("counter", "requests_queued", "Of those, how many had to wait.", 1),
    "requests_wait_ms": ("counter", "requests_wait_seconds", "Seconds they waited, together.", 0.001),
    "requests_errors": ("counter", "requests_errors", "Database connections asked for in vain.", 1),
    "returns_bad": ("counter", "returns_bad", "Database connections that came back broken.", 1),
    "connections_num": ("counter", "connections", "Attempts to connect to the database.", 1),
    "connections_ms": ("counter", "connections_seconds", "Seconds they took, together.", 0.001),
    "connections_errors": ("counter", "connections_errors", "Attempts to connect that failed.", 1),
    "connections_lost": ("counter", "connections_lost", "Database connections found dead.", 1),
}


# What the indexes and the embedding queue are doing stands in the database; whoever asks does not wait longer for it.
DATABASE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMetrics(Collector):
    """Reads the state of what it is given, on the thread of whoever asks."""

    database: Database
    accesses: AccessBuffer
    tuning: TuningState
    backfill: Callable[[], Progress | None] = lambda: None
    """Returns how far a move to another embedding model is."""
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        yield from self._pool()
        yield GaugeMetricFamily(
            "memory_access_buffer_size",
            "Memories whose accesses are counted and not yet written.",
            value=self.accesses.size,
        )
        yield CounterMetricFamily(
            "memory_access_buffer_dropped",
            "Accesses that were not counted because the buffer was full.",
            value=self.accesses.dropped_count,
        )
        yield GaugeMetricFamily(
            "memory_search_widening",
            "How many times as far as configured approximate searches look, because recall was below its target.",
            value=self.tuning.current.widening,
        )
        stored = self._stored_state()
        yield _ann_indexes(None if stored is None else stored.indexes)
        yield from self._embedding_queue(None if stored is None else stored.queue)
        yield self._reembedding(None if stored is None else stored.move)

    def _pool(self) -> Iterator[Metric]:
        statistics = self.database.statistics()
        for key, (kind, name, meaning, unit) in POOL.items():
            family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
            yield family(f"memory_pool_{name}", meaning, value=statistics.get(key, 0) * unit)

    def _stored_state(self) -> StoredState | None:
        try:
            return self.database.read(
                self.database.call(timeout_s=DATABASE_TIMEOUT_S), read_stored_state, user_id=ACROSS_USERS
            )
        except DatabaseError:
            return None

    def _embedding_queue(self, counts: QueueCounts | None) -> Iterator[Metric]:
        memories = GaugeMetricFamily(
            "memory_embedding_queue_size",
            "Memories stored with embed_async that wait for their embedding (pending), or did so in vain (failed); NaN "
            "while the database does not answer.",
            labels=["state"],
        )
        memories.add_metric(["pending"], float("nan") if counts is None else counts.pending)
        memories.add_metric(["failed"], float("nan") if counts is None else counts.failed)
        yield memories
        yield GaugeMetricFamily(
            "memory_embedding_queue_oldest_seconds",
            "How long the oldest of those pending has waited, 0 where none is; NaN while the database does not answer.",
            value=float("nan") if counts is None else self._age_s(counts),
        )

    def _reembedding(self, move: Reembedding | None) -> Metric:
        metric = GaugeMetricFamily(
            "memory_reembedding_memories",
            "While the database moves to another embedding model, until the switch: memories that have an embedding of "
            "it (fresh), that it refuses (refused), that are still to be embedded (missing). Counted now and then; NaN "
            "without such a move.",
            labels=["state"],
        )
        progress = self.backfill() if move is not None and move.phase is Phase.BACKFILL else None
        for state in ("fresh", "refused", "missing"):
            metric.add_metric([state], float("nan") if progress is None else getattr(progress, state))
        return metric

    def _age_s(self, counts: QueueCounts) -> float:
        if counts.oldest_queued_at is None:
            return 0.0
        return max(0.0, (self.clock() - counts.oldest_queued_at).total_seconds())


def _ann_indexes(indexes: list[IndexInfo] | None) -> Metric:
    metric = GaugeMetricFamily(
        "memory_ann_indexes",
        "Approximate indexes, by what they are doing; NaN while the database does not answer.",
        labels=["state"],
    )
    counts = None if indexes is None else Counter(index.state for index in indexes)
    for state in IndexState:
        metric.add_metric([state.value], float("nan") if counts is None else counts[state])
    return metric
