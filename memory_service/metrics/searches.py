"""Searches by plan, how many memories they compared, and the recall of those that were repeated exactly."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from db.recall_probe import NotMeasured
from db.search_plan import Plan

MEMORIES = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)

# Plans whose recall is measured.
APPROXIMATE = (Plan.QUANTIZED, Plan.ANN)


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
