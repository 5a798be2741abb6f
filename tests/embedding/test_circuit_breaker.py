"""Tests of the circuit breaker: when it opens, what callers are told meanwhile, and how it closes by itself."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.circuit_breaker import PATIENCE_S, BreakerOptions, CircuitBreaker, CircuitState
from memory_service.embedding.errors import (
    EmbedderMisconfigured,
    EmbedderUnavailable,
    RequestGivenUp,
    TextNotEmbeddable,
)
from tests.clock import SecondsClock
from tests.embedding.conftest import MakeEmbedder
from tests.embedding.hand_worked import DIMENSIONS
from tests.embedding.provider import Provider, Status, vectors_of

OPTIONS = BreakerOptions(failures=3, cool_down_s=10.0, longest_cool_down_s=60.0)
DOWN = EmbedderUnavailable("the embedding provider failed (HTTP 503)", retry_after_s=1.0)


class ScriptedEmbedder:
    """Implements memory_service.embedding.Embedder; fails as the test says."""

    model = "some-model"
    dimensions = DIMENSIONS
    cacheable = True

    def __init__(self, clock: SecondsClock) -> None:
        self.clock = clock
        self.asked = 0
        self.error: Exception | None = None
        self.takes_s = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def embed(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float,  # noqa: ARG002
        cancellation: Cancellation | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Returns the vectors, or raises what the test has set."""
        self.asked += 1
        self.clock.now += self.takes_s
        error = self.error
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        if error is not None:
            raise error
        return vectors_of(texts, DIMENSIONS)

    def close(self) -> None:
        """Has nothing to release."""


@pytest.fixture
def clock() -> SecondsClock:
    return SecondsClock()


@pytest.fixture
def embedder(clock: SecondsClock) -> ScriptedEmbedder:
    return ScriptedEmbedder(clock)


@pytest.fixture
def states() -> list[CircuitState]:
    return []


@pytest.fixture
def breaker(embedder: ScriptedEmbedder, clock: SecondsClock, states: list[CircuitState]) -> CircuitBreaker:
    return CircuitBreaker(embedder, OPTIONS, on_state=states.append, clock=clock)


def ask(breaker: CircuitBreaker) -> NDArray[np.float32]:
    return breaker.embed(["a"], timeout_s=1.0)


def refused(breaker: CircuitBreaker) -> EmbedderUnavailable:
    """Returns the error of a request that fails."""
    with pytest.raises(EmbedderUnavailable) as caught:
        ask(breaker)
    return caught.value


def fail(breaker: CircuitBreaker, embedder: ScriptedEmbedder, times: int, error: Exception = DOWN) -> None:
    """Lets so many requests fail, and the embedder work again."""
    embedder.error = error
    for _ in range(times):
        with pytest.raises(type(error)):
            ask(breaker)
    embedder.error = None


def test_failures_in_a_row_open_it(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, states: list[CircuitState]
) -> None:
    fail(breaker, embedder, 2)
    ask(breaker)
    fail(breaker, embedder, 2)
    assert states == []
    fail(breaker, embedder, 1)
    assert states == [CircuitState.OPEN]

    error = refused(breaker)

    assert embedder.asked == 6
    assert 10 <= error.retry_after_s <= 12
    assert str(error) == "the embedding provider failed (HTTP 503); it is left alone for a while"


def test_it_closes_by_itself(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, clock: SecondsClock, states: list[CircuitState]
) -> None:
    fail(breaker, embedder, 3)
    clock.now += refused(breaker).retry_after_s - 0.01
    refused(breaker)
    clock.now += 0.01

    np.testing.assert_array_equal(ask(breaker), vectors_of(["a"], DIMENSIONS))
    assert states == [CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED]
    fail(breaker, embedder, 2)
    ask(breaker)
    assert embedder.asked == 7


def test_one_request_probes_while_the_others_fail(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, clock: SecondsClock, states: list[CircuitState]
) -> None:
    fail(breaker, embedder, 3)
    clock.now += 12
    during: list[EmbedderUnavailable] = []
    embedder.meanwhile = lambda: during.append(refused(breaker))

    ask(breaker)

    assert [error.retry_after_s for error in during] == [1.0]
    assert embedder.asked == 4
    assert states[-1] is CircuitState.CLOSED


def test_cool_downs_grow_to_a_limit_and_begin_anew(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, clock: SecondsClock
) -> None:
    fail(breaker, embedder, 3)
    for cool_down_s in (10, 20, 40, 60, 60):
        wait_s = refused(breaker).retry_after_s
        assert cool_down_s <= wait_s <= 1.2 * cool_down_s
        clock.now += wait_s
        fail(breaker, embedder, 1)
    clock.now += 72
    ask(breaker)
    fail(breaker, embedder, 3)
    assert refused(breaker).retry_after_s <= 12


@pytest.mark.parametrize(("wish_s", "at_least_s"), [(30.0, 30.0), (3.0, 10.0), (86_400.0, 600.0)])
def test_the_provider_s_wish_is_honoured(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, wish_s: float, at_least_s: float
) -> None:
    fail(breaker, embedder, 3, EmbedderUnavailable("it limits us", retry_after_s=wish_s))
    assert at_least_s <= refused(breaker).retry_after_s <= 1.2 * at_least_s


@pytest.mark.parametrize(
    "error", [TextNotEmbeddable(0, "is bad"), RequestGivenUp("nobody waits", retry_after_s=1.0), ZeroDivisionError()]
)
def test_what_says_nothing_neither_opens_nor_closes_it(
    breaker: CircuitBreaker,
    embedder: ScriptedEmbedder,
    clock: SecondsClock,
    states: list[CircuitState],
    error: Exception,
) -> None:
    fail(breaker, embedder, 10, error)
    assert states == []
    fail(breaker, embedder, 2)
    fail(breaker, embedder, 1, error)
    fail(breaker, embedder, 1)
    clock.now += 12
    fail(breaker, embedder, 2, error)
    assert states == [CircuitState.OPEN, CircuitState.HALF_OPEN]
    ask(breaker)
    assert states[-1] is CircuitState.CLOSED


def test_a_provider_that_answers_wrongly_is_not_left_alone(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, clock: SecondsClock, states: list[CircuitState]
) -> None:
    misconfigured = EmbedderMisconfigured("the embedding provider does not accept the API key (HTTP 401)")
    fail(breaker, embedder, 10, misconfigured)
    fail(breaker, embedder, 2)
    fail(breaker, embedder, 1, misconfigured)
    fail(breaker, embedder, 2)
    assert states == []
    fail(breaker, embedder, 1)
    clock.now += 12
    fail(breaker, embedder, 1, misconfigured)
    assert states[-1] is CircuitState.CLOSED


def test_a_provider_that_hangs_opens_it_before_its_own_timeout(
    breaker: CircuitBreaker, embedder: ScriptedEmbedder, states: list[CircuitState]
) -> None:
    embedder.takes_s = PATIENCE_S
    fail(breaker, embedder, 3, RequestGivenUp("nobody waits", retry_after_s=1.0))
    assert states == [CircuitState.OPEN]


@pytest.mark.parametrize("late", [None, DOWN])
def test_answers_to_requests_of_before_change_nothing(
    breaker: CircuitBreaker,
    embedder: ScriptedEmbedder,
    states: list[CircuitState],
    late: EmbedderUnavailable | None,
) -> None:
    embedder.meanwhile = lambda: fail(breaker, embedder, 3)
    embedder.error = late
    if late is None:
        ask(breaker)
    else:
        refused(breaker)
    assert states == [CircuitState.OPEN]
    assert refused(breaker).retry_after_s <= 12


def test_changes_are_logged_once(breaker: CircuitBreaker, embedder: ScriptedEmbedder, clock: SecondsClock) -> None:
    with structlog.testing.capture_logs() as events:
        fail(breaker, embedder, 3)
        for _ in range(5):
            refused(breaker)
        clock.now += 12
        fail(breaker, embedder, 1)
        refused(breaker)
        clock.now += 24
        ask(breaker)
        ask(breaker)
    assert [(event["event"], event["log_level"]) for event in events] == [
        ("embedding_circuit_opened", "warning"),
        ("embedding_probe_failed", "info"),
        ("embedding_circuit_closed", "info"),
    ]
    assert events[0]["reason"] == "the embedding provider failed (HTTP 503)"
    assert 10 <= events[0]["cool_down_s"] <= 12


def test_refusals_are_counted(embedder: ScriptedEmbedder, clock: SecondsClock) -> None:
    refusals: list[None] = []
    breaker = CircuitBreaker(embedder, OPTIONS, on_refusal=lambda: refusals.append(None), clock=clock)
    fail(breaker, embedder, 3)
    assert not refusals
    refused(breaker)
    assert len(refusals) == 1


def test_it_recovers_with_a_provider(make_embedder: MakeEmbedder, provider: Provider, clock: SecondsClock) -> None:
    breaker = CircuitBreaker(make_embedder(retries=0), OPTIONS, clock=clock)
    provider.fail(Status(500), always=True)
    for _ in range(20):
        refused(breaker)
    assert len(provider.requests) == 3

    provider.recover()
    refused(breaker)
    clock.now += 12
    np.testing.assert_array_equal(ask(breaker), vectors_of(["a"], DIMENSIONS))


def test_too_many_requests_are_not_followed_by_more(
    make_embedder: MakeEmbedder, provider: Provider, clock: SecondsClock
) -> None:
    breaker = CircuitBreaker(make_embedder(retries=0), OPTIONS, clock=clock)
    provider.fail(Status(429, headers={"Retry-After": "30"}), always=True)
    for _ in range(3):
        refused(breaker)
    clock.now += 29
    assert refused(breaker).retry_after_s >= 1
    assert len(provider.requests) == 3
