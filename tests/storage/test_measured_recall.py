"""How recall is measured: what an exact search finds later that was there to be found and was not."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from db.memory import Memory
from db.recall_probe import IN_FLIGHT, Found, recall_of
from db.search import Hit

SEARCHED_AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
LONG_AGO = SEARCHED_AT - timedelta(days=1)
UNCHANGED = SEARCHED_AT - IN_FLIGHT


def memory(number: int, *, updated_at: datetime = LONG_AGO) -> Memory:
    return Memory(UUID(int=number), "u", None, 5, 1, "test-model", LONG_AGO, updated_at, None, None, 0, None)


def exact(*scored: tuple[int, float], new: tuple[int, ...] = ()) -> list[Hit]:
    """Returns what an exact search found: numbers of memories and their scores; those in `new` are just written."""
    return [
        Hit(memory(number, updated_at=SEARCHED_AT if number in new else LONG_AGO), score) for number, score in scored
    ]


def found(*scored: tuple[int, float]) -> list[Found]:
    return [Found(UUID(int=number), score) for number, score in scored]


def recall(of: list[Found], among: list[Hit], *, limit: int = 3) -> float | None:
    return recall_of(of, among, limit=limit, changed_after=UNCHANGED)


@pytest.mark.parametrize(
    ("of", "among", "expected"),
    [
        pytest.param(found((1, 0.9), (2, 0.8), (3, 0.7)), exact((1, 0.9), (2, 0.8), (3, 0.7)), 1.0, id="all"),
        pytest.param(found((1, 0.9), (3, 0.7), (4, 0.6)), exact((1, 0.9), (2, 0.8), (3, 0.7)), 2 / 3, id="one missed"),
        pytest.param(found(), exact((1, 0.9), (2, 0.8)), 0.0, id="none of a few"),
        pytest.param(found((7, 0.2)), exact((1, 0.9), (2, 0.8), (3, 0.7)), 0.0, id="none of many"),
        pytest.param(found((1, 0.9)), exact((1, 0.9)), 1.0, id="fewer than asked for"),
        pytest.param(found((1, 0.9), (9, 0.7), (2, 0.8)), exact((1, 0.9), (2, 0.8), (3, 0.7)), 1.0, id="a tie"),
        pytest.param(found((1, 0.9), (9, 0.7), (8, 0.7)), exact((1, 0.9), (2, 0.8), (3, 0.7)), 2 / 3, id="tie for one"),
        pytest.param(
            found((1, 0.9), (2, 0.8), (3, 0.7)), exact((1, 0.9), (3, 0.7), (4, 0.6)), 1.0, id="deleted, one moved up"
        ),
        pytest.param(found((1, 0.9), (2, 0.8), (3, 0.7)), exact((4, 0.6), (5, 0.5), (6, 0.4)), None, id="all deleted"),
        pytest.param(found((1, 0.9), (2, 0.8)), exact((1, 0.9)), 1.0, id="deleted, nobody moved up"),
        pytest.param(
            found((1, 0.9), (2, 0.8), (3, 0.7)), exact((5, 1.0), (1, 0.9), (2, 0.8), new=(5,)), 1.0, id="inserted"
        ),
        pytest.param(
            found((1, 0.9), (2, 0.8), (3, 0.7)),
            exact((2, 0.95), (1, 0.9), (3, 0.7), new=(2,)),
            1.0,
            id="updated, nearer now",
        ),
        pytest.param(
            found((2, 0.8), (3, 0.7), (4, 0.6)), exact((5, 1.0), (1, 0.9), (2, 0.8), new=(5,)), 1 / 2, id="still missed"
        ),
        pytest.param(found((1, 0.9)), exact((5, 1.0), new=(5,)), None, id="nothing to compare"),
        pytest.param(found((1, 0.9)), [], None, id="nothing left"),
    ],
)
def test_recall_is_the_share_of_true_results_found(of: list[Found], among: list[Hit], expected: float | None) -> None:
    assert recall(of, among) == (None if expected is None else pytest.approx(expected))


def now() -> datetime:
    return datetime.now(UTC)
