"""Turning texts into stored embeddings: the provider, asked once for each text, and the cache in front of it."""

from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
import structlog
from numpy.typing import NDArray

from db import embedding_cache
from db.cancellation import Call
from db.errors import DatabaseError
from db.pool import Database
from db.vectors import Embedding, InvalidEmbedding, normalize_rows
from memory_service.embedding import Embedder
from memory_service.embedding.errors import EmbedderUnavailable, TextNotEmbeddable

log = structlog.get_logger(__name__)

Vectors = dict[str, NDArray[np.float32]]

# A caller without a deadline waits no longer than this for a provider.
DEFAULT_TIMEOUT_S = 30.0


class TextEmbeddings:
    """Embeds texts through a provider and, where its calls cost something, through the cache."""

    def __init__(self, embedder: Embedder, database: Database, clock: Callable[[], datetime]) -> None:
        self._embedder = embedder
        self._database = database
        self._clock = clock

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
        known = self._cached(unique, call) if self._embedder.cacheable else {}
        missing = [text for text in unique if text not in known]
        fresh = self._ask(missing, texts, call) if missing else {}
        known |= fresh
        # Before they are remembered: a vector without direction would be found in the cache for ever.
        embeddings = _normalized([known[text] for text in texts])
        if fresh and self._embedder.cacheable:
            self._remember(fresh, call)
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

    def _key(self, text: str) -> bytes:
        return embedding_cache.cache_key(self._embedder.model, self._embedder.dimensions, text)

    def _cached(self, texts: list[str], call: Call) -> Vectors:
        keys = {self._key(text): text for text in texts}
        found = self._database.read(call, lambda conn: embedding_cache.look_up(conn, list(keys)))
        return {keys[key]: vector for key, vector in found.items()}

    def _remember(self, fresh: Vectors, call: Call) -> None:
        embeddings = {self._key(text): vector for text, vector in fresh.items()}
        try:
            self._database.write(call, lambda conn: embedding_cache.store(conn, embeddings, now=self._clock()))
        except DatabaseError as error:  # the caller has its embedding; the cache only saves the next call
            log.warning("embedding_cache_not_written", error=str(error))


def _normalized(vectors: Sequence[NDArray[np.float32]]) -> list[Embedding]:
    embeddings = []
    for index, found in enumerate(normalize_rows(np.stack(vectors)) if vectors else ()):
        if isinstance(found, InvalidEmbedding):
            raise TextNotEmbeddable(index, f"its embedding {found}") from found
        embeddings.append(found)
    return embeddings
