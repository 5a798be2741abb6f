"""Tests of the OpenAI embedder with a provider that fails or keeps it waiting."""

import time
from email.utils import formatdate

import numpy as np
import pytest

from memory_service.embedding.errors import (
    EmbedderUnavailable,
)
from memory_service.embedding.openai_compatible import OpenAIEmbedder
from memory_service.embedding.openai_refusals import retry_after_s
from tests.embedding.conftest import MakeEmbedder
from tests.embedding.provider import Drip, Fault, Hang, Provider, Reset, Status, vectors_of


@pytest.mark.parametrize(
    "faults",
    [
        [Status(500), Status(503)],
        [Status(429)],
        [Status(408), Status(409)],
        [Reset(), Reset()],
        [Reset(), Status(502)],
    ],
    ids=repr,
)
def test_passing_failures_are_retried(provider: Provider, embedder: OpenAIEmbedder, faults: list[Fault]) -> None:
    provider.fail(*faults)

    np.testing.assert_array_equal(embedder.embed(["one"], timeout_s=5), vectors_of(["one"], 8))
    assert len(provider.requests) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Status(500), r"failed \(HTTP 500\)"),
        (Status(429), r"is limiting our requests \(HTTP 429\)"),
        (Reset(), "cannot be reached"),
    ],
    ids=repr,
)
def test_lasting_failures_end_with_the_retries(
    provider: Provider, embedder: OpenAIEmbedder, fault: Fault, message: str
) -> None:
    provider.fail(fault, always=True)

    with pytest.raises(EmbedderUnavailable, match=f"^the embedding provider {message}$") as unavailable:
        embedder.embed(["one"], timeout_s=5)

    assert len(provider.requests) == 3
    assert unavailable.value.retry_after_s == 1.0


def test_it_recovers_with_the_provider(provider: Provider, make_embedder: MakeEmbedder) -> None:
    embedder = make_embedder(retries=0)
    provider.fail(Status(503), always=True)
    with pytest.raises(EmbedderUnavailable):
        embedder.embed(["one"], timeout_s=5)

    provider.recover()

    np.testing.assert_array_equal(embedder.embed(["one"], timeout_s=5), vectors_of(["one"], 8))


def test_retry_after_is_waited_for(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Status(429, headers={"Retry-After": "0.3"}))
    start = time.monotonic()

    embedder.embed(["one"], timeout_s=5)

    assert 0.3 <= time.monotonic() - start < 2
    assert len(provider.requests) == 2


def test_a_retry_after_beyond_the_time_left_is_passed_on_at_once(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Status(429, headers={"Retry-After": "30"}), always=True)
    start = time.monotonic()

    with pytest.raises(EmbedderUnavailable, match="limiting our requests") as unavailable:
        embedder.embed(["one"], timeout_s=5)

    assert time.monotonic() - start < 2
    assert unavailable.value.retry_after_s == 30
    assert len(provider.requests) == 1


def test_an_exhausted_quota_is_not_retried(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Status(429, code="insufficient_quota"), always=True)

    with pytest.raises(EmbedderUnavailable, match="quota at the embedding provider is used up") as unavailable:
        embedder.embed(["one"], timeout_s=5)

    assert unavailable.value.retry_after_s == 60
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "-7"}, 0.0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "soon"}, 7.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_understood(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers) == expected


def test_retry_after_may_be_a_date() -> None:
    wait_s = retry_after_s({"retry-after": formatdate(time.time() + 100, usegmt=True)})

    assert wait_s == pytest.approx(100, abs=5)


@pytest.mark.parametrize("fault", [Hang(), Drip(pause_s=0.02)])
def test_no_call_outlives_its_time(provider: Provider, make_embedder: MakeEmbedder, fault: Fault) -> None:
    provider.fail(fault, always=True)
    start = time.monotonic()

    with pytest.raises(EmbedderUnavailable, match=r"did not answer within 0\.3 s"):
        make_embedder(batch_size=1).embed(["one"] * 9, timeout_s=0.3)

    assert 0.3 <= time.monotonic() - start < 3


def test_a_request_that_hangs_is_given_up_and_repeated(provider: Provider, make_embedder: MakeEmbedder) -> None:
    provider.fail(Hang())

    vectors = make_embedder(request_timeout_s=0.2).embed(["one"], timeout_s=5)

    np.testing.assert_array_equal(vectors, vectors_of(["one"], 8))
    assert len(provider.requests) == 2


def test_requests_that_all_hang_say_how_long_was_waited(provider: Provider, make_embedder: MakeEmbedder) -> None:
    provider.fail(Hang(), always=True)

    with pytest.raises(EmbedderUnavailable, match=r"did not answer within 0\.1 s"):
        make_embedder(request_timeout_s=0.1, retries=1).embed(["one"], timeout_s=5)

    assert len(provider.requests) == 2
