"""Embedding text: the Embedder protocol, and the choice of an implementation by the settings.

local.py               a small model in this process
openai_compatible.py   OpenAI and servers that speak its protocol
errors.py              what both raise
cancellation.py        how they learn that nobody waits any more

In front of a provider whose calls cost something (memory_service/embedding_chain.py says in which order):

single_flight.py       a text wanted by several callers is asked for once
micro_batching.py      texts of callers that wait at the same time share a request
circuit_breaker.py     a provider that keeps failing is left alone for a while
layer.py               what these have in common
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_service.config import ConfigurationError, Settings
from memory_service.embedding.cancellation import Cancellation


class Embedder(Protocol):
    """Turns texts into vectors; safe to use from many threads."""

    @property
    def model(self) -> str:
        """The name of the model: vectors of different models cannot be compared."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of the vectors."""
        ...

    @property
    def cacheable(self) -> bool:
        """Whether looking a vector up costs less than computing it again."""
        ...

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Returns the embeddings of `texts`, in their order, shape (len(texts), dimensions), not normalized.

        Raises:
            TextNotEmbeddable: One of the texts cannot be embedded; nothing was.
            EmbedderUnavailable: No answer within `timeout_s`, retries included, or nobody waits for one any more.
            EmbedderMisconfigured: The embedder cannot work until its settings are mended.
        """
        ...

    def close(self) -> None:
        """Releases connections and threads."""
        ...


def create_embedder(settings: Settings) -> Embedder | None:
    """Returns the embedder that `settings` name, ready for use; None for "none".

    Raises:
        ConfigurationError: The embedder's package is not installed, or its settings cannot work.
    """
    if settings.embedder == "none":
        return None
    # Each embedder needs packages that an installation without it does not have.
    if settings.embedder == "local":
        with _packages_of_extra("local"):
            from memory_service.embedding.local import LocalEmbedder  # noqa: PLC0415 - see above

            return LocalEmbedder()
    with _packages_of_extra("openai"):
        from memory_service.embedding.openai_compatible import OpenAIEmbedder  # noqa: PLC0415 - see above
    return OpenAIEmbedder(
        model=settings.model,
        dimensions=settings.dimensions,
        api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else None,
        base_url=settings.openai_base_url,
        batch_size=settings.openai_batch_size,
        request_timeout_s=settings.embedding_timeout_s,
        retries=settings.embedding_retries,
    )


@contextmanager
def _packages_of_extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"MEMORY_EMBEDDER={extra} needs the package {error.name}: pip install 'memory-service[{extra}]'"
        ) from error
