"""Fixtures: the module's server asks a provider of ours, which can be counted on to count and to fail."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from db import migrate
from db.schema import EmbeddingSpace
from tests.embedding.provider import Provider
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

KEY = "sk-secret-of-the-operator"
MODEL = "some-model"


@pytest.fixture(scope="module")
def module_provider() -> Iterator[Provider]:
    """The provider that the module's server asks."""
    with Provider(dimensions=8, api_key=KEY) as provider:
        yield provider


@pytest.fixture
def provider(module_provider: Provider) -> Iterator[Provider]:
    """The same, with nothing asked of it yet; well again after the test."""
    module_provider.requests.clear()
    yield module_provider
    module_provider.recover()
    module_provider.names_index = False


@pytest.fixture(scope="module")
def module_database_url(databases: Databases) -> Iterator[str]:
    """A database for the provider's model, shared by the tests of this module."""
    url = databases.create(None)
    migrate.upgrade(url, EmbeddingSpace(MODEL, 8))
    yield url
    databases.drop(url)


def asking(provider: Provider, database_url: str) -> dict[str, Any]:
    """Returns the settings of a service that embeds text through the provider, asking once."""
    return {
        "database_url": database_url,
        "embedder": "openai",
        "embedding_model": MODEL,
        "embedding_dimensions": 8,
        "openai_base_url": provider.base_url,
        "openai_api_key": KEY,
        "embedding_retries": 0,
    }


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str, module_provider: Provider) -> Iterator[ServerProcess]:
    """A service that embeds text through the provider."""
    with running_servers(databases) as start:
        yield start(**asking(module_provider, module_database_url))


@pytest.fixture
def text() -> str:
    """A text that no other test has had embedded."""
    return f"text {uuid.uuid4().hex}"
