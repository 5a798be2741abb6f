"""Entries of the audit log, by what became of them."""

from prometheus_client import CollectorRegistry, Counter

from db.audit_buffer import AuditOutcome


class AuditMetrics:
    """Entries of the audit log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        entries = Counter(
            "memory_audit_entries_total",
            "Entries for the audit log: written, dropped (the database did not take them and there were too many), "
            "refused (by the database; the log has the reason), left_out (refused calls of one caller in excess of "
            "one a second).",
            ("outcome",),
            registry=registry,
        )
        self._entries = {outcome: entries.labels(outcome.value) for outcome in AuditOutcome}

    def count(self, outcome: AuditOutcome, entries: int) -> None:
        """Records what became of so many entries."""
        self._entries[outcome].inc(entries)
