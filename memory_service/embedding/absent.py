"""What stands in for an embedder that a process cannot make from its settings: it refuses every text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from db.schema import EmbeddingSpace
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderMisconfigured


class AbsentEmbedder:
    """An Embedder that says why there is none."""

    def __init__(self, space: EmbeddingSpace, reason: str) -> None:
        self._space = space
        self._reason = reason

    @property
    def model(self) -> str:
        """The model that would be needed."""
        return self._space.model

    @property
    def dimensions(self) -> int:
        """The length of that model's vectors."""
        return self._space.dimensions

    @property
    def cacheable(self) -> bool:
        """True: what other processes have cached can be had without an embedder."""
        return True

    def embed(
        self,
        texts: Sequence[str],  # noqa: ARG002 - whatever they are
        *,
        timeout_s: float,  # noqa: ARG002 - at once
        cancellation: Cancellation | None = None,  # noqa: ARG002 - likewise
    ) -> NDArray[np.float32]:
        """Raises EmbedderMisconfigured."""
        raise EmbedderMisconfigured(self._reason)

    def close(self) -> None:
        """Has nothing to release."""
