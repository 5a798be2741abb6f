"""The tuning of approximate searches: widened when recall is low, narrowed when it was good for long, and patiently."""

import pytest
from structlog.testing import capture_logs

from db.search_plan import Plan, SearchTuning
from db.search_tuning import ENOUGH, MAX_WIDENING, WINDOW, TuningState

TARGET = 0.98


@pytest.fixture
def state() -> TuningState:
    """A tuning as configured, nothing measured yet."""
    return TuningState(SearchTuning(), target=TARGET)


def measure(state: TuningState, recall: float, *, times: int, plan: Plan = Plan.QUANTIZED) -> float:
    return [state.measured(plan, recall) for _ in range(times)][-1]


def test_a_few_bad_recalls_change_nothing(state: TuningState) -> None:
    measure(state, 0.5, times=ENOUGH - 1)
    assert state.current == SearchTuning()


def test_low_recall_widens_and_is_logged(state: TuningState) -> None:
    with capture_logs() as events:
        measure(state, 0.9, times=ENOUGH)
    assert state.current.widening == 2
    [event] = events
    assert event == {
        "event": "recall_below_target",
        "log_level": "warning",
        "plan": "quantized",
        "recall": 0.9,
        "target": TARGET,
        "widening": 2,
    }


def test_the_mean_counts_not_the_single_search(state: TuningState) -> None:
    for _ in range(ENOUGH):
        measure(state, 1.0, times=9)
        mean = measure(state, 0.9, times=1)
    assert mean == pytest.approx(0.99)
    assert state.current.widening == 1


def test_widening_ends_at_its_maximum_and_goes_on_warning(state: TuningState) -> None:
    with capture_logs() as events:
        measure(state, 0.5, times=10 * ENOUGH)
    assert state.current.widening == MAX_WIDENING
    assert [event["widening"] for event in events] == [2, 4, *[8] * 8]


def test_what_was_measured_before_a_change_is_forgotten(state: TuningState) -> None:
    measure(state, 0.5, times=ENOUGH)
    assert measure(state, 1.0, times=1) == 1.0


def test_the_mean_is_that_of_the_last_ones(state: TuningState) -> None:
    measure(state, 0.985, times=WINDOW)
    assert measure(state, 1.0, times=WINDOW) == 1.0


def test_good_recall_for_long_narrows_again(state: TuningState) -> None:
    measure(state, 0.9, times=ENOUGH)
    measure(state, 1.0, times=WINDOW - 1)
    assert state.current.widening == 2
    measure(state, 1.0, times=1)
    assert state.current.widening == 1
    measure(state, 1.0, times=WINDOW)
    assert state.current.widening == 1


def test_just_above_the_target_is_not_enough_to_narrow(state: TuningState) -> None:
    measure(state, 0.9, times=ENOUGH)
    measure(state, 0.985, times=3 * WINDOW)
    assert state.current.widening == 2


def test_a_plan_that_needs_it_keeps_it_from_narrowing(state: TuningState) -> None:
    measure(state, 0.9, times=ENOUGH, plan=Plan.ANN)
    measure(state, 0.985, times=ENOUGH, plan=Plan.ANN)
    measure(state, 1.0, times=2 * WINDOW, plan=Plan.QUANTIZED)
    assert state.current.widening == 2


def test_one_plan_below_target_widens_although_the_other_is_fine(state: TuningState) -> None:
    measure(state, 1.0, times=WINDOW, plan=Plan.QUANTIZED)
    measure(state, 0.9, times=ENOUGH, plan=Plan.ANN)
    assert state.current.widening == 2


def test_a_narrowing_that_was_wrong_is_repeated_more_seldom(state: TuningState) -> None:
    measure(state, 0.9, times=ENOUGH)
    for windows in (1, 2, 4):
        measure(state, 1.0, times=windows * WINDOW - 1)
        assert state.current.widening == 2
        measure(state, 1.0, times=1)
        assert state.current.widening == 1
        measure(state, 0.9, times=ENOUGH)
        assert state.current.widening == 2
