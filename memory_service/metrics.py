"""What is counted and timed while calls are served, under the names that dashboards expect of a gRPC server.

docs/operations.md lists all metrics. What is only read when somebody asks (the pool, the access buffer) is in
state_metrics.py.
"""

from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import MethodDescriptor
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from db.audit_buffer import AuditOutcome
from db.recall_probe import NotMeasured
from db.search_plan import Plan
from memory_service.access.load_metrics import LoadMetrics
from memory_service.access.refusals import Refusals
from memory_service.embedding.circuit_breaker import CircuitState
from memory_service.job_outcome import JobOutcome
from memory_service.v1 import admin_pb2, memory_pb2

SERVICES = (
    memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
)

# A search of a small user takes half a millisecond; a call without a deadline ends after ten seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MEMORIES = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)

# Plans whose recall is measured.
APPROXIMATE = (Plan.QUANTIZED, Plan.ANN)

TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048)

EMBEDDING_FAILURES = ("unavailable", "misconfigured", "text_refused", "defect")


@dataclass(frozen=True, slots=True)
class MethodMetrics:
    """The series of one method, looked up once: by their labels it would take four times as long."""

    started: Counter
    seconds: Histogram
    codes: dict[grpc.StatusCode, Counter]

    def handled(self, code: grpc.StatusCode, duration_s: float) -> None:
        """Records the end of a call."""
        self.codes[code].inc()
        self.seconds.observe(duration_s)


class CallMetrics:
    """Calls by method and status, as go-grpc-prometheus names them.

    All series of the service's methods are there from the beginning, at 0: a rate can be told from the first error on.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter(
            "grpc_server_started_total", "Calls that reached the service.", labels, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled_total",
            "Calls ended, by the status they were answered with.",
            (*labels, "grpc_code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from a call's reaching the service to its end.",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}
        for service in SERVICES:
            for method in service.methods:
                self.of(service.full_name, method.name, _type_of(method))

    def of(self, service: str, method: str, grpc_type: str) -> MethodMetrics:
        """Returns the series of a method, from the second time on without delay."""
        labels = (grpc_type, service, method)
        if labels not in self._methods:
            self._methods[labels] = MethodMetrics(
                started=self._started.labels(*labels),
                seconds=self._seconds.labels(*labels),
                codes={code: self._handled.labels(*labels, _go_name(code)) for code in grpc.StatusCode},
            )
        return self._methods[labels]


def grpc_type(*, request_streaming: bool, response_streaming: bool) -> str:
    """Returns what the label grpc_type says of a method."""
    if request_streaming:
        return "bidi_stream" if response_streaming else "client_stream"
    return "server_stream" if response_streaming else "unary"


def _type_of(method: MethodDescriptor) -> str:
    return grpc_type(request_streaming=method.client_streaming, response_streaming=method.server_streaming)


def _go_name(code: grpc.StatusCode) -> str:
    """Returns the code as Go spells it, and with it every dashboard: OK, Canceled, NotFound."""
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return code.name if code is grpc.StatusCode.OK else code.name.title().replace("_", "")


class SearchMetrics:
    """Searches by plan, what they looked at, and the recall that the probe measured."""

    def __init__(self, registry: CollectorRegistry) -> None:
        searches = Counter(
            "memory_search_total", "Searches of one user, by the plan that answered.", ("plan",), registry=registry
        )
        candidates = Histogram(
            "memory_search_candidates",
            "Memories compared precisely in a search.",
            ("plan",),
            buckets=MEMORIES,
            registry=registry,
        )
        self._searches = {plan: searches.labels(plan.value) for plan in Plan}
        self._candidates = {plan: candidates.labels(plan.value) for plan in Plan}
        mean = Gauge(
            "memory_search_recall",
            "Mean recall of the last approximate searches that were repeated exactly; NaN before the first.",
            ("plan",),
            registry=registry,
        )
        measured = Histogram(
            "memory_search_recall_measured",
            "Recall of each approximate search that was repeated exactly.",
            ("plan",),
            buckets=RECALLS,
            registry=registry,
        )
        self._recall_mean = {plan: mean.labels(plan.value) for plan in APPROXIMATE}
        self._recall = {plan: measured.labels(plan.value) for plan in APPROXIMATE}
        for gauge in self._recall_mean.values():
            gauge.set(float("nan"))
        probes = Counter(
            "memory_search_recall_probes_total",
            "Approximate searches drawn for an exact repetition: measured, dropped (another one ran, or the time "
            "allowed for probing was used up), changed (what should have been found was written too recently), "
            "failed (it took too long, or the database did not answer).",
            ("outcome",),
            registry=registry,
        )
        self._measured = probes.labels("measured")
        self._not_measured = {reason: probes.labels(reason.value) for reason in NotMeasured}

    def searched(self, plan: Plan, considered: int) -> None:
        """Records a search that compared `considered` memories precisely."""
        self._searches[plan].inc()
        self._candidates[plan].observe(considered)

    def recall_measured(self, plan: Plan, recall: float, mean: float) -> None:
        """Records a measured recall, and the mean that it is now part of."""
        self._measured.inc()
        self._recall[plan].observe(recall)
        self._recall_mean[plan].set(mean)

    def recall_not_measured(self, reason: NotMeasured) -> None:
        """Records a search that was drawn in vain."""
        self._not_measured[reason].inc()


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
        self.failures = {reason: failures.labels(reason) for reason in EMBEDDING_FAILURES}
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


class AuditMetrics:
    """Entries of the audit log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        entries = Counter(
            "memory_audit_entries_total",
            "Entries for the audit log: written, dropped (the database did not take them and there were too many), "
            "refused (by the database; the log has the reason).",
            ("outcome",),
            registry=registry,
        )
        self._entries = {outcome: entries.labels(outcome.value) for outcome in AuditOutcome}

    def count(self, outcome: AuditOutcome, entries: int) -> None:
        """Records what became of so many entries."""
        self._entries[outcome].inc(entries)


class Metrics:
    """All that is recorded while calls are served, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = CallMetrics(registry)
        self.load = LoadMetrics(registry)
        self.refusals = Refusals(registry)
        self.searches = SearchMetrics(registry)
        self.embeddings = EmbeddingMetrics(registry)
        self.embedding_queue = EmbeddingQueueMetrics(registry)
        self.audit = AuditMetrics(registry)
