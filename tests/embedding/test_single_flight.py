"""Tests of sharing answers: one request for a text, and callers that leave without taking anything from the others."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from db.cancellation import Call
from memory_service.embedding.errors import (
    EmbedderMisconfigured,
    EmbedderUnavailable,
    RequestGivenUp,
    TextNotEmbeddable,
)
from memory_service.embedding.micro_batching import MicroBatching
from memory_service.embedding.single_flight import SingleFlight
from tests.embedding.conftest import MakeEmbedder
from tests.embedding.hand_worked import DIMENSIONS, LIMIT_S, HandWorkedEmbedder
from tests.embedding.provider import Json, Provider, Status, Tamper, vectors_of

Vectors = NDArray[np.float32]


class Shared:
    """Counts the texts that were shared, and waits for them."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def add(self, texts: int) -> None:
        """Takes what SingleFlight reports."""
        with self._changed:
            self._count += texts
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Waits until so many texts have been shared; fails when there are more."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, LIMIT_S), "too few callers share"
            assert self._count == count


@pytest.fixture
def embedder() -> HandWorkedEmbedder:
    return HandWorkedEmbedder()


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def flight(embedder: HandWorkedEmbedder, shared: Shared) -> Iterator[SingleFlight]:
    """Sharing in front of an embedder that takes two requests at a time."""
    batching = MicroBatching(embedder, concurrent_requests=2, max_texts=64, max_bytes=10_000, timeout_s=60.0)
    flight = SingleFlight(batching, on_shared=shared.add)
    yield flight
    flight.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as threads:
        yield threads


Ask = Callable[..., Future[Vectors]]


@pytest.fixture
def ask(flight: SingleFlight, threads: ThreadPoolExecutor) -> Ask:
    """Embeds on a thread of its own."""

    def start(texts: Sequence[str], *, timeout_s: float = LIMIT_S, call: Call | None = None) -> Future[Vectors]:
        return threads.submit(flight.embed, list(texts), timeout_s=timeout_s, cancellation=call)

    return start


def assert_vectors(answer: Future[Vectors], texts: Sequence[str]) -> None:
    np.testing.assert_array_equal(answer.result(LIMIT_S), vectors_of(texts, DIMENSIONS))


def test_concurrent_callers_of_a_text_make_one_request(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    answers = [ask(["same"]) for _ in range(20)]
    shared.wait_for(19)
    embedder.request(0).answer()

    for answer in answers:
        assert_vectors(answer, ["same"])
    assert [request.texts for request in embedder.requests] == [["same"]]


def test_nothing_is_remembered(flight: SingleFlight, embedder: HandWorkedEmbedder, ask: Ask) -> None:
    for number in range(2):
        answer = ask(["a"])
        embedder.request(number).answer()
        assert_vectors(answer, ["a"])
    assert flight.embed([], timeout_s=1.0).shape == (0, DIMENSIONS)


def test_calls_share_the_texts_they_have_in_common(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    first = ask(["a", "b", "a"])
    embedder.request(0)
    second = ask(["b", "c"])
    shared.wait_for(1)
    assert [embedder.request(0).texts, embedder.request(1).texts] == [["a", "b"], ["c"]]
    embedder.request(1).answer()
    assert not second.done()
    embedder.request(0).answer()

    assert_vectors(first, ["a", "b", "a"])
    assert_vectors(second, ["b", "c"])


def test_the_first_caller_s_cancellation_is_its_own(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    call = Call()
    first = ask(["a"], call=call)
    embedder.request(0)
    second = ask(["a"])
    shared.wait_for(1)

    call.cancel()

    with pytest.raises(RequestGivenUp):
        first.result(LIMIT_S)
    assert not embedder.request(0).given_up.is_set()
    embedder.request(0).answer()
    assert_vectors(second, ["a"])
    assert len(embedder.requests) == 1


def test_the_first_caller_s_deadline_is_its_own(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    first = ask(["a"], timeout_s=0.1)
    embedder.request(0)
    second = ask(["a"])
    shared.wait_for(1)

    with pytest.raises(EmbedderUnavailable, match=r"within 0\.1 s"):
        first.result(LIMIT_S)
    embedder.request(0).answer()
    assert_vectors(second, ["a"])
    assert embedder.request(0).timeout_s == 60.0


def test_whoever_joins_keeps_their_own_deadline(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    first = ask(["a"])
    embedder.request(0)
    second = ask(["a"], timeout_s=0.05)
    shared.wait_for(1)

    with pytest.raises(EmbedderUnavailable, match=r"within 0\.05 s"):
        second.result(LIMIT_S)
    assert not first.done()
    embedder.request(0).answer()
    assert_vectors(first, ["a"])


def test_the_last_to_leave_gives_the_request_up(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    calls = [Call(), Call()]
    answers = [ask(["a"], call=calls[0])]
    embedder.request(0)
    answers.append(ask(["a"], call=calls[1]))
    shared.wait_for(1)

    for call, answer in zip(calls, answers, strict=True):
        assert not embedder.request(0).given_up.is_set()
        call.cancel()
        with pytest.raises(RequestGivenUp):
            answer.result(LIMIT_S)

    assert embedder.request(0).given_up.wait(LIMIT_S)
    after = ask(["a"])
    embedder.request(1).answer()
    assert_vectors(after, ["a"])


def test_a_call_cancelled_before_it_waits_gives_its_thread_back(flight: SingleFlight) -> None:
    call = Call()
    call.cancel()
    started_at = time.monotonic()
    with pytest.raises(RequestGivenUp):
        flight.embed(["a"], timeout_s=LIMIT_S, cancellation=call)
    assert time.monotonic() - started_at < LIMIT_S / 2


@pytest.mark.parametrize(
    "error", [EmbedderUnavailable("it is down", retry_after_s=3.0), EmbedderMisconfigured("no such model")]
)
def test_an_error_reaches_all_who_waited(
    ask: Ask, embedder: HandWorkedEmbedder, shared: Shared, error: Exception
) -> None:
    answers = [ask(["a"]) for _ in range(5)]
    shared.wait_for(4)
    embedder.request(0).fail(error)

    assert [answer.exception(LIMIT_S) for answer in answers] == [error] * 5
    after = ask(["a"])
    embedder.request(1).answer()
    assert_vectors(after, ["a"])


def test_a_refused_text_is_named_in_each_caller_s_order(ask: Ask, embedder: HandWorkedEmbedder, shared: Shared) -> None:
    first = ask(["bad", "a"])
    embedder.request(0)
    second = ask(["b", "b", "bad"])
    shared.wait_for(1)
    embedder.request(0).fail(TextNotEmbeddable(0, "is bad"))

    for answer, index in ((first, 0), (second, 2)):
        error = answer.exception(LIMIT_S)
        assert isinstance(error, TextNotEmbeddable)
        assert (error.index, error.reason) == (index, "is bad")


def test_a_failure_does_not_wait_for_the_other_texts(ask: Ask, embedder: HandWorkedEmbedder) -> None:
    blocker = ask(["a"])
    embedder.request(0)
    answer = ask(["a", "bad"])
    embedder.request(1).fail(TextNotEmbeddable(0, "is bad"))

    with pytest.raises(TextNotEmbeddable):
        answer.result(LIMIT_S)
    assert not blocker.done()
    embedder.request(0).answer()
    assert_vectors(blocker, ["a"])


def test_different_texts_go_in_few_requests(ask: Ask, flight: SingleFlight, embedder: HandWorkedEmbedder) -> None:
    first = [ask([f"first {number}"]) for number in range(2)]
    embedder.request(1)
    answers = [ask([f"text {number}"]) for number in range(18)]
    batching = flight._inner  # noqa: SLF001 - nobody else tells when all have arrived
    deadline = time.monotonic() + LIMIT_S
    while batching.waiting < 18:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    embedder.request(0).answer()
    embedder.request(2).answer()
    embedder.request(1).answer()

    for number, answer in enumerate(answers):
        assert_vectors(answer, [f"text {number}"])
    assert [answer.result(LIMIT_S).shape for answer in first] == [(1, DIMENSIONS)] * 2
    assert len(embedder.requests) == 3


def test_callers_of_a_provider_share_its_answers_and_its_errors(
    make_embedder: MakeEmbedder, provider: Provider, threads: ThreadPoolExecutor, shared: Shared
) -> None:
    batching = MicroBatching(
        make_embedder(retries=0), concurrent_requests=4, max_texts=64, max_bytes=10_000, timeout_s=20.0
    )
    flight = SingleFlight(batching, on_shared=shared.add)

    def once_all_wait(body: Json) -> Json:
        shared.wait_for(19)
        return body

    provider.fail(Tamper(once_all_wait))
    answers = [threads.submit(flight.embed, ["same"], timeout_s=LIMIT_S) for _ in range(20)]
    for answer in answers:
        assert_vectors(answer, ["same"])
    assert len(provider.requests) == 1

    provider.fail(Status(500))
    with pytest.raises(EmbedderUnavailable):
        flight.embed(["other"], timeout_s=LIMIT_S)
    np.testing.assert_array_equal(flight.embed(["other"], timeout_s=LIMIT_S), vectors_of(["other"], DIMENSIONS))
    flight.close()
