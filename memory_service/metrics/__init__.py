"""What is counted and timed while calls are served; docs/operations.md lists all metrics.

calls, searches, embeddings, audit   what is counted as it happens
state                                what is only read when somebody asks: the pool, the access buffer, the tuning
listener                             the address that answers Prometheus

Threads and refusals are counted where they are kept, in access/.
"""

from prometheus_client import CollectorRegistry

from memory_service.access.load_metrics import LoadMetrics
from memory_service.access.refusals import Refusals
from memory_service.metrics.audit import AuditMetrics
from memory_service.metrics.calls import CallMetrics
from memory_service.metrics.embeddings import EmbeddingMetrics, EmbeddingQueueMetrics
from memory_service.metrics.searches import SearchMetrics


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
