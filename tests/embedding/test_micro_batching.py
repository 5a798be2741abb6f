"""Tests of joining texts: what goes at once, what is gathered, and that one text's fault stays its own."""

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, TextNotEmbeddable
from memory_service.embedding.micro_batching import Answer, MicroBatching
from memory_service.embedding.openai_compatible import OpenAIEmbedder
from tests.embedding.conftest import MakeEmbedder
from tests.embedding.hand_worked import DIMENSIONS, LIMIT_S, HandWorkedEmbedder
from tests.embedding.provider import FORBIDDEN, TOO_LONG, Hang, Provider, Tamper, vector_of

MakeBatching = Callable[..., MicroBatching]


@pytest.fixture
def embedder() -> HandWorkedEmbedder:
    return HandWorkedEmbedder()


@pytest.fixture
def make_batching(embedder: HandWorkedEmbedder) -> Iterator[MakeBatching]:
    """Makes micro-batching of one request at a time, with at most 4 texts and 100 bytes; closes it after the test."""
    with ExitStack() as closing:

        def make(
            asked: HandWorkedEmbedder | OpenAIEmbedder = embedder,
            *,
            concurrent_requests: int = 1,
            max_texts: int = 4,
            max_bytes: int = 100,
            on_request: Callable[[int], object] = lambda _: None,
        ) -> MicroBatching:
            batching = MicroBatching(
                asked,
                concurrent_requests=concurrent_requests,
                max_texts=max_texts,
                max_bytes=max_bytes,
                timeout_s=7.0,
                on_request=on_request,
            )
            closing.callback(batching.close)
            return batching

        yield make


def assert_vectors(answers: list[Answer], texts: list[str]) -> None:
    for answer, text in zip(answers, texts, strict=True):
        np.testing.assert_array_equal(answer.result(LIMIT_S), vector_of(text, DIMENSIONS))


def test_an_idle_embedder_is_asked_at_once(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    batching = make_batching(concurrent_requests=2)
    first = batching.submit(["a", "b"])
    second = batching.submit(["c"])

    assert [embedder.request(0).texts, embedder.request(1).texts] == [["a", "b"], ["c"]]
    assert embedder.request(0).timeout_s == 7.0
    embedder.request(1).answer()
    assert_vectors(second, ["c"])
    assert not any(answer.done() for answer in first)
    embedder.request(0).answer()
    assert_vectors(first, ["a", "b"])


def test_what_comes_meanwhile_goes_together(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    sizes: list[int] = []
    batching = make_batching(max_texts=256, max_bytes=10_000, on_request=sizes.append)
    first = batching.submit(["first"])
    embedder.request(0)
    others = [(f"other {number}", batching.submit([f"other {number}"])) for number in range(20)]
    assert batching.waiting == 20
    assert len(embedder.requests) == 1

    embedder.request(0).answer()
    embedder.request(1).answer()

    assert_vectors(first, ["first"])
    for text, answers in others:
        assert_vectors(answers, [text])
    assert sizes == [1, 20]
    assert len(embedder.requests) == 2


def test_a_large_call_lets_others_ride_along(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    batching = make_batching()
    batching.submit(["first"])
    large = batching.submit([f"large {number}" for number in range(6)])
    search = batching.submit(["search"])
    for number in range(3):
        embedder.request(number).answer()

    assert_vectors(search, ["search"])
    assert_vectors(large, [f"large {number}" for number in range(6)])
    assert embedder.request(1).texts == ["large 0", "search", "large 1", "large 2"]
    assert embedder.request(2).texts == ["large 3", "large 4", "large 5"]


def test_a_call_larger_than_a_request_takes_several_at_once(
    make_batching: MakeBatching, embedder: HandWorkedEmbedder
) -> None:
    make_batching(concurrent_requests=3).submit([str(number) for number in range(10)])

    texts = sorted(embedder.request(number).texts for number in range(3))
    assert texts == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


@pytest.mark.parametrize(
    ("sizes", "expected"), [([60, 40, 1], [2, 1]), ([60, 41, 60], [1, 1, 1]), ([300, 1], [1, 1]), ([1, 300], [1, 1])]
)
def test_requests_have_a_size_in_bytes(
    make_batching: MakeBatching, embedder: HandWorkedEmbedder, sizes: list[int], expected: list[int]
) -> None:
    batching = make_batching()
    batching.submit(["first"])
    texts = ["ü" * (size // 2) + "x" * (size % 2) for size in sizes]
    answers = batching.submit(texts)
    for number in range(len(expected) + 1):
        embedder.request(number).answer()

    assert_vectors(answers, texts)
    assert [len(request.texts) for request in embedder.requests[1:]] == expected


def test_a_refused_text_fails_alone(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    batching = make_batching()
    batching.submit(["first"])
    calls = [batching.submit(texts) for texts in (["a"], ["bad"], ["b", "worse"])]
    embedder.request(0).answer()
    embedder.request(1).fail(TextNotEmbeddable(1, "is bad"))
    assert embedder.request(2).texts == ["a", "b", "worse"]
    embedder.request(2).fail(TextNotEmbeddable(2, "is worse"))
    embedder.request(3).answer()

    assert_vectors(calls[0], ["a"])
    assert_vectors(calls[2][:1], ["b"])
    for answer, reason in ((calls[1][0], "is bad"), (calls[2][1], "is worse")):
        error = answer.exception(LIMIT_S)
        assert isinstance(error, TextNotEmbeddable)
        assert (error.index, error.reason) == (0, reason)
    assert embedder.request(3).texts == ["a", "b"]


@pytest.mark.parametrize("error", [EmbedderUnavailable("it is down", retry_after_s=3.0), ZeroDivisionError("a defect")])
def test_a_failure_reaches_all_in_the_request(
    make_batching: MakeBatching, embedder: HandWorkedEmbedder, error: Exception
) -> None:
    batching = make_batching()
    batching.submit(["first"])
    answers = [batching.submit(["a"])[0], batching.submit(["b"])[0]]
    embedder.request(0).answer()
    embedder.request(1).fail(error)

    assert [answer.exception(LIMIT_S) for answer in answers] == [error, error]
    after = batching.submit(["c"])
    embedder.request(2).answer()
    assert_vectors(after, ["c"])


def test_vectors_that_do_not_fit_are_the_fault_of_one_caller(
    make_batching: MakeBatching, embedder: HandWorkedEmbedder
) -> None:
    batching = make_batching()
    batching.submit(["first"])
    callers = {text: batching.submit([text, text + "2"]) for text in ("a", "poison")}
    embedder.request(0).answer()
    misfit = EmbedderMisconfigured("the embedding provider sent NaN")
    embedder.request(1).fail(misfit)
    for number in (2, 3):
        request = embedder.request(number)
        if "poison" in request.texts:
            request.fail(misfit)
        else:
            request.answer()

    assert_vectors(callers["a"], ["a", "a2"])
    assert [answer.exception(LIMIT_S) for answer in callers["poison"]] == [misfit, misfit]
    assert len(embedder.requests) == 4


def test_nobody_asks_for_what_was_cancelled(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    batching = make_batching()
    batching.submit(["first"])
    gone = batching.submit(["gone", "going"])
    kept = batching.submit(["kept"])
    gone[0].cancel()
    embedder.request(0).answer()
    assert embedder.request(1).texts == ["kept", "going"] or embedder.request(1).texts == ["going", "kept"]
    gone[1].cancel()
    assert not embedder.request(1).given_up.is_set()
    embedder.request(1).answer()

    assert_vectors(kept, ["kept"])
    with pytest.raises(CancelledError):
        gone[1].result(LIMIT_S)


def test_a_request_nobody_waits_for_is_given_up(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    batching = make_batching()
    answers = batching.submit(["a", "b"])
    request = embedder.request(0)
    answers[0].cancel()
    assert not request.given_up.is_set()
    answers[1].cancel()

    assert request.given_up.wait(LIMIT_S)
    after = batching.submit(["c"])
    embedder.request(1).answer()
    assert_vectors(after, ["c"])


def test_closing_fails_whoever_waits(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    batching = make_batching()
    under_way, waiting = batching.submit(["a"]), batching.submit(["b"])
    embedder.request(0)
    batching.close()

    for [answer] in (under_way, waiting):
        assert isinstance(answer.exception(LIMIT_S), EmbedderUnavailable)
    assert embedder.closed
    with pytest.raises(EmbedderUnavailable, match="closed"):
        batching.submit(["c"])


def test_nothing_is_asked_for_no_texts(make_batching: MakeBatching, embedder: HandWorkedEmbedder) -> None:
    assert make_batching().submit([]) == []
    assert not embedder.requests


@given(
    st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=9), max_size=12), st.integers(1, 5), st.integers(1, 20)
)
def test_every_text_goes_once_within_the_bounds(calls: list[list[int]], max_texts: int, max_bytes: int) -> None:
    embedder = HandWorkedEmbedder()
    batching = MicroBatching(embedder, concurrent_requests=1, max_texts=max_texts, max_bytes=max_bytes, timeout_s=1.0)
    batching.submit(["first"])
    embedder.request(0)
    texts = [
        [f"{caller}.{number}" + "x" * size for number, size in enumerate(call)] for caller, call in enumerate(calls)
    ]
    answers = [answer for call in texts for answer in batching.submit(call)]
    embedder.answer_all()
    for answer in answers:
        answer.result(LIMIT_S)
    batching.close()
    asked = [request.texts for request in embedder.requests[1:]]
    assert sorted(text for request in asked for text in request) == sorted(text for call in texts for text in call)
    assert all(len(request) <= max_texts for request in asked)
    assert all(sum(map(len, request)) <= max_bytes or len(request) == 1 for request in asked)


def test_one_bad_text_at_a_provider_spoils_nothing_for_others(
    make_batching: MakeBatching, make_embedder: MakeEmbedder, provider: Provider
) -> None:
    batching = make_batching(make_embedder(), max_texts=256, max_bytes=10_000)
    provider.fail(Hang(0.2))
    batching.submit(["first"])
    texts = ["a", f"b {TOO_LONG}", "c", f"d {FORBIDDEN}", " ", "e"]
    answers = [batching.submit([text])[0] for text in texts]

    reasons = [getattr(answer.exception(LIMIT_S), "reason", None) for answer in answers]
    assert reasons == [
        None,
        "has more than the 8192 tokens the embedding model takes",
        None,
        "was refused by the embedding provider (HTTP 400)",
        "has nothing to embed",
        None,
    ]
    good = [0, 2, 5]
    assert_vectors([answers[index] for index in good], [texts[index] for index in good])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda body: {**body, "data": body["data"][:-1]}, id="one vector too few"),
        pytest.param(lambda body: {**body, "data": [{**row, "embedding": [1.0] * 7} for row in body["data"]]}, id="7"),
        pytest.param(
            lambda body: {**body, "data": [{**row, "embedding": [float("nan")] * 8} for row in body["data"]]}, id="NaN"
        ),
    ],
)
def test_a_provider_whose_vectors_never_fit_fails_everybody(
    make_batching: MakeBatching, make_embedder: MakeEmbedder, provider: Provider, change: Callable[..., object]
) -> None:
    batching = make_batching(make_embedder())
    provider.fail(Tamper(change), always=True)  # type: ignore[arg-type]
    answers = [batching.submit([text])[0] for text in ("a", "b", "c")]

    assert all(isinstance(answer.exception(LIMIT_S), EmbedderMisconfigured) for answer in answers)
    provider.recover()
    assert_vectors(batching.submit(["d"]), ["d"])
