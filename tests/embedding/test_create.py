"""Tests of choosing an embedder by the settings."""

import sys

import numpy as np
import pytest

from memory_service import config
from memory_service.embedding import create_embedder
from tests.embedding.conftest import KEY
from tests.embedding.provider import Provider, vector_of


def test_none_is_no_embedder() -> None:
    assert create_embedder(config.load(embedder="none", embedding_dimensions=3)) is None


def test_local_is_the_default() -> None:
    settings = config.load()

    embedder = create_embedder(settings)

    assert embedder is not None
    assert (embedder.model, embedder.dimensions) == (settings.model, settings.dimensions)
    assert embedder.embed(["text"], timeout_s=5).shape == (1, settings.dimensions)


def test_openai_takes_its_settings(provider: Provider) -> None:
    settings = config.load(
        embedder="openai",
        openai_api_key=KEY,
        openai_base_url=provider.base_url,
        openai_batch_size=2,
    )

    embedder = create_embedder(settings)

    assert embedder is not None
    assert (embedder.model, embedder.dimensions, embedder.cacheable) == ("text-embedding-3-small", 1536, True)
    vectors = embedder.embed(["a", "b", "c"], timeout_s=5)
    embedder.close()
    np.testing.assert_array_equal(vectors[2], vector_of("c", 1536))
    assert sorted(len(request.texts) for request in provider.requests) == [1, 2]


def test_openai_itself_needs_only_a_key() -> None:
    embedder = create_embedder(config.load(embedder="openai", openai_api_key=KEY, embedding_dimensions=512))

    assert embedder is not None
    assert (embedder.model, embedder.dimensions) == ("text-embedding-3-small", 512)
    embedder.close()


def test_a_provider_without_keys_needs_none(provider: Provider) -> None:
    provider.api_key = None
    settings = config.load(
        embedder="openai", openai_base_url=provider.base_url, embedding_model="mini", embedding_dimensions=8
    )

    embedder = create_embedder(settings)

    assert embedder is not None
    assert embedder.embed(["a"], timeout_s=5).shape == (1, 8)
    embedder.close()


@pytest.mark.parametrize(
    ("embedder", "package", "module"),
    [
        ("local", "wordllama", "memory_service.embedding.local"),
        ("openai", "openai", "memory_service.embedding.openai_compatible"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, embedder: str, package: str, module: str) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # what makes an import fail as if it were not installed

    with pytest.raises(config.ConfigurationError) as refused:
        create_embedder(config.load(embedder=embedder, openai_api_key=KEY))

    assert str(refused.value) == (
        f"MEMORY_EMBEDDER={embedder} needs the package {package}: pip install 'memory-service[{embedder}]'"
    )


@pytest.mark.parametrize(
    "url", ["localhost:11434/v1", "ftp://host/v1", "http:///v1", "http://host:port/v1", "http://[::1/v1", "/v1"]
)
def test_a_base_url_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(config.ConfigurationError, match="MEMORY_OPENAI_BASE_URL: is not an http"):
        config.load(embedder="openai", openai_base_url=url)
