"""Timing an embedder, whichever it is."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding import Embedder
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, TextNotEmbeddable
from memory_service.metrics import EmbeddingMetrics


class MeasuredEmbedder:
    """An Embedder that hands everything to another one, and records how long that takes and how it fails."""

    def __init__(self, embedder: Embedder, metrics: EmbeddingMetrics) -> None:
        self._embedder = embedder
        self._metrics = metrics

    @property
    def model(self) -> str:
        """See Embedder."""
        return self._embedder.model

    @property
    def dimensions(self) -> int:
        """See Embedder."""
        return self._embedder.dimensions

    @property
    def cacheable(self) -> bool:
        """See Embedder."""
        return self._embedder.cacheable

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """See Embedder."""
        started_at = time.perf_counter()
        try:
            return self._embedder.embed(texts, timeout_s=timeout_s, cancellation=cancellation)
        except Exception as error:
            self._metrics.failures[_reason(error)].inc()
            raise
        finally:
            self._metrics.seconds.observe(time.perf_counter() - started_at)

    def close(self) -> None:
        """See Embedder."""
        self._embedder.close()


def _reason(error: Exception) -> str:
    match error:
        case EmbedderUnavailable():
            return "unavailable"
        case EmbedderMisconfigured():
            return "misconfigured"
        case TextNotEmbeddable():
            return "text_refused"
        case _:
            return "defect"
