"""Embedding texts: requests to the provider and what spares them, and attempts at what waits in the queue."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from memory_service.embedding.circuit_breaker import CircuitState
from memory_service.job_outcome import JobOutcome
from memory_service.metrics.calls import SECONDS

TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048)

FAILURES = ("unavailable", "misconfigured", "text_refused", "defect")


class EmbeddingMetrics:
    """Requests to what embeds text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "memory_embedding_seconds",
            "Seconds of one request for embeddings, retries included.",
            buckets=SECONDS,
            registry=registry,
        )
        failures = Counter(
            "memory_embedding_failures_total",
            "Requests for embeddings that failed: unavailable (no answer in time, or its caller left), misconfigured, "
            "text_refused, defect.",
            ("reason",),
            registry=registry,
        )
        self.failures = {reason: failures.labels(reason) for reason in FAILURES}
        self.request_texts = Histogram(
            "memory_embedding_request_texts",
            "Texts in one request to the provider.",
            buckets=TEXTS,
            registry=registry,
        )
        self.shared_texts = Counter(
            "memory_embedding_shared_texts_total",
            "Texts that callers waited for without another request: it was under way already.",
            registry=registry,
        )
        self.waiting_texts = Gauge(
            "memory_embedding_waiting_texts",
            "Texts waiting for a request to the provider to end before they go with the next one.",
            registry=registry,
        )
        circuit = Gauge(
            "memory_embedding_circuit",
            "1 for the state that requests to the provider are in: closed (they are made), open (they fail at once), "
            "half_open (one tries whether the provider works again).",
            ("state",),
            registry=registry,
        )
        self._circuit = {state: circuit.labels(state.value) for state in CircuitState}
        self.circuit_changed(CircuitState.CLOSED)
        self.circuit_refusals = Counter(
            "memory_embedding_circuit_refusals_total",
            "Requests to the provider that failed without being made, because it kept failing.",
            registry=registry,
        )
        cache = Counter(
            "memory_embedding_cache_total",
            "Texts looked up in the cache of embeddings: hit, miss.",
            ("outcome",),
            registry=registry,
        )
        self._cache_hits, self._cache_misses = cache.labels("hit"), cache.labels("miss")
        evicted = Counter(
            "memory_embedding_cache_evicted_total",
            "Embeddings deleted from the cache: expired (not used for too long), excess (there were too many).",
            ("reason",),
            registry=registry,
        )
        self._cache_expired, self._cache_excess = evicted.labels("expired"), evicted.labels("excess")

    def circuit_changed(self, state: CircuitState) -> None:
        """Records the circuit breaker's new state."""
        for each, gauge in self._circuit.items():
            gauge.set(each is state)

    def cache_looked_up(self, *, hits: int, misses: int) -> None:
        """Records texts looked up in the cache."""
        self._cache_hits.inc(hits)
        self._cache_misses.inc(misses)

    def cache_evicted(self, *, expired: int, excess: int) -> None:
        """Records embeddings deleted from the cache."""
        self._cache_expired.inc(expired)
        self._cache_excess.inc(excess)


class EmbeddingQueueMetrics:
    """Attempts at what waits for its embedding."""

    def __init__(self, registry: CollectorRegistry) -> None:
        attempts = Counter(
            "memory_embedding_queue_attempts_total",
            "Attempts to embed memories stored with embed_async: embedded, obsolete (erased, changed or embedded "
            "meanwhile), refused (the model cannot embed the text), postponed (the provider failed), given_up (it "
            "failed too often), released (given back untried).",
            ("outcome",),
            registry=registry,
        )
        self._attempts = {outcome: attempts.labels(outcome.value) for outcome in JobOutcome}

    def count(self, outcome: JobOutcome, memories: int) -> None:
        """Records how an attempt at so many memories ended."""
        self._attempts[outcome].inc(memories)
