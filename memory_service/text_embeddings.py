"""Turning texts into stored embeddings: the provider, asked once for each text, and the cache in front of it."""

from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from db.cancellation import Call
from db.pool import Database
from db.vectors import Embedding, InvalidEmbedding, normalize_rows
from memory_service.embedding import Embedder
from memory_service.embedding.errors import EmbedderUnavailable, TextNotEmbeddable
from memory_service.vector_cache import CacheOptions, VectorCache, Vectors

# A caller without a deadline waits no longer than this for a provider.
DEFAULT_TIMEOUT_S = 30.0


class TextEmbeddings:
    """Embeds texts through a provider and, where its calls cost something, through the cache."""

    def __init__(
        self,
        embedder: Embedder,
        database: Database,
        clock: Callable[[], datetime],
        *,
        cache: CacheOptions = CacheOptions(),  # noqa: B008 - frozen
    ) -> None:
        self._embedder = embedder
        self._cache = (
            VectorCache(database, clock, cache, model=embedder.model, dimensions=embedder.dimensions)
            if embedder.cacheable
            else None
        )

    @property
    def model(self) -> str:
        """The model that makes the embeddings."""
        return self._embedder.model

    def embed(self, texts: Sequence[str], call: Call) -> list[Embedding]:
        """Returns the normalized embedding of each text, in order, with one request to the provider.

        Raises:
            TextNotEmbeddable: When the model refuses a text; `index` is its position in `texts`.
            EmbedderUnavailable: When the provider does not answer in time.
            EmbedderMisconfigured: When the provider refuses the configuration.
        """
        unique = list(dict.fromkeys(texts))
        cache = self._cache
        if cache is None:
            vectors = self._ask(unique, texts, call) if unique else {}
            return _normalized([vectors[text] for text in texts])
        known = cache.find(unique, call)
        missing = [text for text in unique if text not in known]
        with cache.asking(missing):
            fresh = self._ask(missing, texts, call) if missing else {}
            known |= fresh
            # Before they are remembered: a vector without direction would be found in the cache for ever.
            embeddings = _normalized([known[text] for text in texts])
            cache.remember(fresh, call)
        return embeddings

    def _ask(self, missing: list[str], texts: Sequence[str], call: Call) -> Vectors:
        remaining_s = call.remaining_s()
        timeout_s = DEFAULT_TIMEOUT_S if remaining_s is None else remaining_s
        try:
            vectors = self._embedder.embed(missing, timeout_s=timeout_s, cancellation=call)
        except TextNotEmbeddable as error:
            raise TextNotEmbeddable(texts.index(missing[error.index]), error.reason) from error
        except EmbedderUnavailable as error:
            # Nobody is left to answer; the provider may be as well as ever.
            raise call.ended_early() or error from error
        return dict(zip(missing, vectors, strict=True))


def _normalized(vectors: Sequence[NDArray[np.float32]]) -> list[Embedding]:
    embeddings = []
    for index, found in enumerate(normalize_rows(np.stack(vectors)) if vectors else ()):
        if isinstance(found, InvalidEmbedding):
            raise TextNotEmbeddable(index, f"its embedding {found}") from found
        embeddings.append(found)
    return embeddings
