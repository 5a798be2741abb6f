"""An embedder for tests: its vectors follow from the texts alone, and it tells what it was asked."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbeddingError, TextNotEmbeddable
from tests.storage.sample_memories import DIMENSIONS


def vector_of(text: str, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Returns the vector of a text, of some norm around 5."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return (2 * np.random.default_rng(seed).normal(size=dimensions)).astype(np.float32)


class SampleEmbedder:
    """Implements memory_service.embedding.Embedder."""

    def __init__(self, *, cacheable: bool, model: str = "sample-model", dimensions: int = DIMENSIONS) -> None:
        self.model = model
        self.dimensions = dimensions
        self.cacheable = cacheable
        self.asked: list[list[str]] = []
        """The texts of each request."""
        self.timeouts_s: list[float] = []
        self.refused: set[str] = set()
        self.special: dict[str, NDArray[np.float32]] = {}
        """Vectors in place of the usual ones."""
        self.error: EmbeddingError | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        """What happens elsewhere while the provider thinks."""

    def embed(
        self,
        texts: Sequence[str],
        *,
        timeout_s: float,
        cancellation: Cancellation | None = None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        """Returns the vectors, or raises what the test has set."""
        self.asked.append(list(texts))
        self.timeouts_s.append(timeout_s)
        self.meanwhile()
        if self.error is not None:
            raise self.error
        for index, text in enumerate(texts):
            if text in self.refused:
                raise TextNotEmbeddable(index, "is refused")
        return np.array([self.special.get(text, vector_of(text, self.dimensions)) for text in texts])

    def close(self) -> None:
        """Has nothing to release."""
