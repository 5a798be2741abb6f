"""Refusals are counted one by one and told to the log by the second."""

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from memory_service.access.refusals import LIMITS, Refusals
from memory_service.config import variables
from tests.clock import SecondsClock


def test_each_is_counted_and_the_log_told_once_a_second() -> None:
    clock, registry = SecondsClock(), CollectorRegistry()
    refusals = Refusals(registry, clock=clock)
    with capture_logs() as events:
        for _ in range(5):
            refusals.count("MEMORY_THREADS")
        refusals.count("MEMORY_QUOTA_BYTES")
        clock.now += 1.0
        refusals.count("MEMORY_THREADS")
    assert registry.get_sample_value("memory_refused_total", {"limit": "MEMORY_THREADS"}) == 6
    assert registry.get_sample_value("memory_refused_total", {"limit": "MEMORY_WRITE_THREADS"}) == 0
    assert [event["event"] for event in events] == ["calls_refused", "calls_refused"]
    assert events[0]["threads"] == 1
    assert (events[1]["threads"], events[1]["quota_bytes"]) == (5, 1)


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_are_called_after_their_settings(limit: str) -> None:
    assert variables(limit.removeprefix("MEMORY_").lower()) == [limit]
