"""Tests of the OpenAI embedder against a provider on a real socket: requests, replies, threads, closing."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from memory_service.embedding.errors import (
    EmbedderMisconfigured,
    EmbedderUnavailable,
    TextNotEmbeddable,
)
from memory_service.embedding.openai_compatible import OpenAIEmbedder
from tests.embedding.conftest import KEY, MakeEmbedder
from tests.embedding.provider import Fault, Hang, Provider, Tamper, vectors_of


def changed_first_vector(values: list[float]) -> Tamper:
    def change(reply: dict[str, Any]) -> dict[str, Any]:
        reply["data"][0]["embedding"] = values
        return reply

    return Tamper(change)


def test_the_request_is_the_protocols(provider: Provider, embedder: OpenAIEmbedder) -> None:
    embedder.embed(["one", "two\nlines"], timeout_s=5)

    (request,) = provider.requests
    assert request.body == {"model": "some-model", "input": ["one", "two\nlines"], "encoding_format": "base64"}
    assert request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("model", "dimensions"),
    [
        ("text-embedding-3-small", 256),
        ("openai/text-embedding-3-large", 1024),
        ("text-embedding-ada-002", None),
        ("nomic-embed-text", None),
    ],
)
def test_dimensions_are_asked_of_models_that_have_a_choice(
    provider: Provider, make_embedder: MakeEmbedder, model: str, dimensions: int | None
) -> None:
    embedder = make_embedder(model=model, dimensions=dimensions or 8)

    assert embedder.embed(["text"], timeout_s=5).shape == (1, dimensions or 8)
    assert provider.requests[0].body.get("dimensions") == dimensions


def test_only_ada_gets_spaces_for_newlines(provider: Provider, make_embedder: MakeEmbedder) -> None:
    make_embedder(model="text-embedding-ada-002").embed(["two\nlines"], timeout_s=5)

    assert provider.requests[0].texts == ["two lines"]


def test_no_texts_need_no_request(provider: Provider, embedder: OpenAIEmbedder) -> None:
    assert embedder.embed([], timeout_s=5).shape == (0, 8)
    assert provider.requests == []


def test_blank_text_is_refused_without_a_request(provider: Provider, embedder: OpenAIEmbedder) -> None:
    with pytest.raises(TextNotEmbeddable, match="text 1 has nothing to embed"):
        embedder.embed(["fine", " \n"], timeout_s=5)

    assert provider.requests == []


@pytest.mark.parametrize("base64", [True, False])
def test_both_encodings_are_read(provider: Provider, embedder: OpenAIEmbedder, base64: bool) -> None:  # noqa: FBT001 - parametrized
    provider.honours_base64 = base64

    vectors = embedder.embed(["one", "two"], timeout_s=5)

    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, vectors_of(["one", "two"], 8))


def test_vectors_are_ordered_by_index(provider: Provider, embedder: OpenAIEmbedder) -> None:
    texts = ["one", "two", "three"]
    provider.fail(Tamper(lambda reply: reply | {"data": reply["data"][::-1]}))

    np.testing.assert_array_equal(embedder.embed(texts, timeout_s=5), vectors_of(texts, 8))


def test_large_calls_are_batched_by_number_and_bytes(provider: Provider, make_embedder: MakeEmbedder) -> None:
    short, long = [f"text {number}" for number in range(250)], ["ä" * 70_000, "ö" * 70_000, "ü" * 70_000]

    vectors = make_embedder(batch_size=100).embed(short + long, timeout_s=10)

    np.testing.assert_array_equal(vectors, vectors_of(short + long, 8))
    assert sorted(len(request.texts) for request in provider.requests) == [1, 52, 100, 100]
    for request in provider.requests:
        assert sum(len(text.encode()) for text in request.texts) <= 300_000


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Tamper(lambda reply: reply | {"data": reply["data"][:-1]}), "sent 1 embeddings for 2 texts"),
        (changed_first_vector([1.0, 2.0, 3.0]), "sent 3 dimensions where 8 are configured"),
        (changed_first_vector([math.nan] * 8), "sent NaN or infinity where finite numbers are expected"),
        (changed_first_vector([math.inf] * 8), "sent NaN or infinity where finite numbers are expected"),
        (Tamper(lambda _: b"<html>"), "sent something that is not a list of embeddings"),
    ],
)
def test_replies_that_do_not_fit_are_the_operators_to_mend(
    provider: Provider, embedder: OpenAIEmbedder, fault: Fault, message: str
) -> None:
    provider.fail(fault)

    with pytest.raises(EmbedderMisconfigured, match=f"^the embedding provider {message}$"):
        embedder.embed(["one", "two"], timeout_s=5)


def test_many_threads_share_it(embedder: OpenAIEmbedder) -> None:
    texts = [f"text {number}" for number in range(40)]

    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(lambda text: embedder.embed([text], timeout_s=10)[0], texts))

    np.testing.assert_array_equal(np.stack(vectors), vectors_of(texts, 8))


def test_one_call_that_waits_holds_up_no_other(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Hang())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embedder.embed, ["slow"], timeout_s=5)
        while not provider.requests:
            time.sleep(0.001)

        embedder.embed(["fast"], timeout_s=5)

        assert not waiting.done()
        provider.closing.set()
        np.testing.assert_array_equal(waiting.result(), vectors_of(["slow"], 8))


def test_closing_ends_calls_under_way_and_the_thread(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Hang(), always=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embedder.embed, ["one"], timeout_s=60)
        while not provider.requests:
            time.sleep(0.001)
        ours = [thread for thread in threading.enumerate() if thread.name == "openai-embedder"]

        embedder.close()

        with pytest.raises(EmbedderUnavailable, match="the embedder is closed"):
            waiting.result()
    assert ours
    assert not any(thread.is_alive() for thread in ours)


def test_a_closed_embedder_says_so(embedder: OpenAIEmbedder) -> None:
    embedder.close()
    embedder.close()

    with pytest.raises(EmbedderUnavailable, match="the embedder is closed"):
        embedder.embed(["one"], timeout_s=5)
