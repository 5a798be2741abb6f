"""How far a back-fill is, as a terminal shows it and as the log tells it."""

import io
from typing import Any

import pytest

from memory_service.reembedding import progress
from memory_service.reembedding.progress import Bar, Log, Meter
from tests.clock import SecondsClock


@pytest.fixture
def clock() -> SecondsClock:
    """Seconds that a test decides."""
    return SecondsClock()


@pytest.fixture
def meter(clock: SecondsClock) -> Meter:
    """Of 1,000 memories, 200 of which an earlier run has done."""
    return Meter(total=1_000, done=200, clock=clock)


def test_rate_and_time_left_count_what_this_run_has_done(clock: SecondsClock, meter: Meter) -> None:
    assert (meter.share, meter.left_s) == (0.2, None)
    clock.now += 4
    meter.add(200)
    assert (meter.share, meter.rate, meter.left_s) == (0.4, 50.0, 12.0)


def test_memories_written_meanwhile_make_the_total_grow(meter: Meter) -> None:
    meter.add(900)
    assert (meter.total, meter.share) == (1_100, 1.0)
    assert Meter(total=0, done=0).share == 1.0


def test_the_bar_is_drawn_anew_in_place(clock: SecondsClock, meter: Meter) -> None:
    stream = io.StringIO()
    bar = Bar(stream)
    clock.now += 4
    meter.add(300)
    bar.show(meter)
    bar.show(meter)  # too soon
    assert stream.getvalue() == (
        "\r\x1b[K[###############...............]  50%  500 of 1,000 memories, 75/s, 0:07 left"
    )
    bar.end()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_the_log_gets_a_line_every_few_seconds(
    clock: SecondsClock, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []

    class Lines:
        def info(self, event: str, **fields: Any) -> None:
            assert event == "reembedding_progress"
            lines.append(fields)

    monkeypatch.setattr(progress, "log", Lines())
    log = Log()
    for _ in range(30):
        clock.now += 1
        meter.add(10)
        log.show(meter)
    assert [line["done"] for line in lines] == [210, 310, 410]
    assert lines[-1] == {"done": 410, "total": 1_000, "percent": 41, "per_second": 10, "left_s": 59}
