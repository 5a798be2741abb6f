"""Tests of the OpenAI embedder with a provider that refuses its requests."""

from collections.abc import Callable

import numpy as np
import pytest
import structlog

from memory_service.embedding.errors import (
    EmbedderMisconfigured,
    EmbeddingError,
    TextNotEmbeddable,
)
from memory_service.embedding.openai_compatible import OpenAIEmbedder
from tests.embedding.conftest import KEY, MakeEmbedder
from tests.embedding.provider import FORBIDDEN, TOO_LONG, Provider, Reset, Status, Tamper, vectors_of


@pytest.mark.parametrize("names_index", [True, False])
@pytest.mark.parametrize("batch_size", [256, 3])
def test_a_text_of_too_many_tokens_is_named(
    provider: Provider,
    make_embedder: MakeEmbedder,
    names_index: bool,  # noqa: FBT001 - parametrized
    batch_size: int,
) -> None:
    provider.names_index = names_index
    texts = ["fine"] * 7 + [TOO_LONG] + ["fine"] * 5

    with pytest.raises(TextNotEmbeddable) as refused:
        make_embedder(batch_size=batch_size).embed(texts, timeout_s=5)

    assert refused.value.index == 7
    assert refused.value.reason == "has more than the 8192 tokens the embedding model takes"


@pytest.mark.parametrize(
    "status",
    [
        Status(400, "This model's maximum context length is 8192 tokens, however you requested 10738 tokens"),
        Status(413, "Input validation error: `inputs` must have less than 512 tokens. Given: 534"),
        Status(500, "input (744 tokens) is too large to process. increase the physical batch size"),
        Status(400, "the input length exceeds the context length"),
    ],
    ids=["openai", "text-embeddings-inference", "llama.cpp", "ollama"],
)
def test_every_way_to_say_too_many_tokens_blames_the_text(
    provider: Provider, embedder: OpenAIEmbedder, status: Status
) -> None:
    provider.fail(status, always=True)

    with pytest.raises(
        TextNotEmbeddable, match=r"text 0 has more (than the \d+ tokens|tokens than) the embedding model"
    ):
        embedder.embed(["one"], timeout_s=5)

    assert len(provider.requests) == 1


def test_a_text_refused_for_another_reason_is_named(embedder: OpenAIEmbedder) -> None:
    with pytest.raises(TextNotEmbeddable) as refused:
        embedder.embed(["fine", "fine", FORBIDDEN, "fine"], timeout_s=5)

    assert refused.value.index == 2
    assert refused.value.reason == "was refused by the embedding provider (HTTP 400)"


def test_an_index_that_was_not_sent_is_not_believed(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Status(400, "Invalid 'input[99]'"))

    np.testing.assert_array_equal(embedder.embed(["one", "two"], timeout_s=5), vectors_of(["one", "two"], 8))


def test_no_text_is_blamed_where_all_are_refused(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.fail(Status(422, "encoding_format: extra inputs are not permitted"), always=True)

    with pytest.raises(EmbedderMisconfigured, match=r"refuses every request \(HTTP 422\)"):
        embedder.embed(["one", "two"], timeout_s=5)


def test_too_many_texts_for_the_provider_are_split(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.max_texts = 10
    texts = [f"text {number}" for number in range(25)]

    np.testing.assert_array_equal(embedder.embed(texts, timeout_s=5), vectors_of(texts, 8))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not accept the API key"),
        (403, "denies access with this API key"),
        (404, "has no model 'some-model', or no embeddings at the configured address"),
        (405, "refuses requests"),
    ],
)
def test_a_wrong_key_model_or_address_is_the_operators_to_mend(
    provider: Provider, embedder: OpenAIEmbedder, status: int, message: str
) -> None:
    provider.fail(Status(status), always=True)

    with pytest.raises(EmbedderMisconfigured, match=rf"^the embedding provider {message} \(HTTP {status}\)$"):
        embedder.embed(["one"], timeout_s=5)

    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    "misbehave",
    [
        lambda provider: provider.fail(Status(400, f"'$.input' is invalid: my diary, key {KEY}"), always=True),
        lambda provider: provider.fail(Status(500, f"crashed on my diary, key {KEY}"), always=True),
        lambda provider: provider.fail(Status(404, f"nothing at {provider.base_url} for {KEY}"), always=True),
        lambda provider: provider.fail(Reset(), always=True),
        lambda provider: provider.fail(Tamper(lambda _: b"my diary"), always=True),
        lambda provider: setattr(provider, "api_key", "another"),
    ],
    ids=["400", "500", "404", "reset", "no json", "401"],
)
def test_neither_errors_nor_the_log_tell_text_key_or_address(
    provider: Provider, embedder: OpenAIEmbedder, misbehave: Callable[[Provider], None]
) -> None:
    misbehave(provider)

    with structlog.testing.capture_logs() as events, pytest.raises(EmbeddingError) as failure:
        embedder.embed(["my diary", "your diary"], timeout_s=5)

    told = f"{failure.value} {failure.value.__cause__} {vars(failure.value)} {events}"
    for secret in ("diary", KEY, "127.0.0.1"):
        assert secret not in told
