"""Timing an embedder, whichever it is."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding import Embedder
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, TextNotEmbeddable
from memory_service.embedding.layer import Layer
from memory_service.metrics.embeddings import EmbeddingMetrics


class MeasuredEmbedder(Layer[Embedder]):
    """An Embedder that hands everything to another one, and records how long that takes and how it fails."""

    def __init__(self, embedder: Embedder, metrics: EmbeddingMetrics) -> None:
        super().__init__(embedder)
        self._metrics = metrics

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """See Embedder."""
        started_at = time.perf_counter()
        try:
            return self._inner.embed(texts, timeout_s=timeout_s, cancellation=cancellation)
        except Exception as error:
            self._metrics.failures[_reason(error)].inc()
            raise
        finally:
            self._metrics.seconds.observe(time.perf_counter() - started_at)


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
