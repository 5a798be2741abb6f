"""Fixtures: a provider, and embedders that ask it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from memory_service.embedding.openai_compatible import OpenAIEmbedder
from tests.embedding.provider import Provider

KEY = "sk-secret-of-the-operator"

MakeEmbedder = Callable[..., OpenAIEmbedder]


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider of 8-dimensional vectors that accepts only KEY."""
    with Provider(dimensions=8, api_key=KEY) as provider:
        yield provider


@pytest.fixture
def make_embedder(provider: Provider) -> Iterator[MakeEmbedder]:
    """Makes embedders that ask the provider, with short pauses between retries; closes them after the test."""
    with ExitStack() as stack:

        def make(**changes: Any) -> OpenAIEmbedder:
            settings: dict[str, Any] = {
                "model": "some-model",
                "dimensions": 8,
                "api_key": KEY,
                "base_url": provider.base_url,
                "batch_size": 256,
                "request_timeout_s": 5.0,
                "retries": 2,
                "first_backoff_s": 0.01,
            }
            embedder = OpenAIEmbedder(**(settings | changes))
            stack.callback(embedder.close)
            return embedder

        yield make


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> OpenAIEmbedder:
    """An embedder that asks the provider."""
    return make_embedder()
