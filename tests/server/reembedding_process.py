"""Moves between two models of one provider: the settings on either side, and `memory-service reembed` in process."""

from typing import Any

from db.facts import facts_of
from db.schema import EmbeddingSpace
from memory_service import config
from memory_service.config import Settings
from memory_service.reembedding.actions import Actions, Confirm, open_database
from memory_service.reembedding.request import Request
from memory_service.signals import StopRequest
from tests.embedding.provider import Provider
from tests.fix_database import DIMENSIONS, MODEL

LIVE = EmbeddingSpace(MODEL, DIMENSIONS)
# Of the models that are asked for a number of dimensions.
TARGET = EmbeddingSpace("text-embedding-3-large", 12)

ARGUMENTS = ("--embedder", "openai", "--model", TARGET.model, "--dimensions", str(TARGET.dimensions), "--yes")


def settings_for(provider: Provider, url: str, space: EmbeddingSpace = LIVE, **more: Any) -> dict[str, Any]:
    """Returns the settings of a service that embeds for `space` through the provider."""
    return {
        "database_url": url,
        "embedder": "openai",
        "embedding_model": space.model,
        "embedding_dimensions": space.dimensions,
        "openai_base_url": provider.base_url,
        "embedding_retries": 0,
        "embedding_queue_poll_s": 0.05,
        "log_format": "json",
        **more,
    }


def reembed(
    settings: dict[str, Any], action: Any = "move", *, confirm: Confirm | None = None, **request: Any
) -> tuple[int, list[str]]:
    """Runs the command in this process; returns its exit status and what it said."""
    if action == "move" and not request.keys() & {"embedder", "model", "dimensions"}:
        request |= {"embedder": "openai", "model": TARGET.model, "dimensions": TARGET.dimensions}
    said: list[str] = []
    configured: Settings = config.load(**settings)
    url = settings["database_url"]
    live = facts_of(url).space
    assert live is not None
    with open_database(url, configured) as database:
        actions = Actions(
            settings=configured,
            request=Request(action=action, **{"yes": confirm is None, **request}),
            database=database,
            direct_url=url,
            live=live,
            say=said.append,
            confirm=confirm,
            stop=StopRequest(),
        )
        return actions.run(), said
