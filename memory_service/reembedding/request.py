"""What an operator asks of `memory-service reembed`."""

from dataclasses import dataclass
from typing import Literal

from memory_service.settings.embedding import Embedder

Action = Literal["move", "dry-run", "status", "switch", "switch-back", "clean-up", "cancel"]

DEFAULT_BATCH = 256
# Calls wait as long as memories are locked, and give up after MEMORY_POOL_TIMEOUT_S, a second.
DEFAULT_MAX_PENDING = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command line."""

    action: Action = "move"
    embedder: Embedder | None = None
    model: str | None = None
    dimensions: int | None = None
    """None, like the two before: as in the move under way, or the default."""
    batch: int = DEFAULT_BATCH
    max_pending: int = DEFAULT_MAX_PENDING
    no_switch: bool = False
    yes: bool = False

    @property
    def names_target(self) -> bool:
        """Whether a new model is named."""
        return any(value is not None for value in (self.embedder, self.model, self.dimensions))
