"""How an embedder learns that nobody waits for its answer any more."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Cancellation(Protocol):
    """Whoever waits for embeddings may give up; db.cancellation.Call is one."""

    def stopping(self, stop: Callable[[], object]) -> AbstractContextManager[None]:
        """Calls `stop`, from any thread, when that happens while the context lasts."""
        ...
