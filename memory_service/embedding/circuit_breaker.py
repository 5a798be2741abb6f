"""Leaving an embedder alone for a while that keeps failing.

The three states are those of Nygard, Release It! (2nd ed. 2018), section 5.2.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import structlog
from numpy.typing import NDArray

from memory_service.embedding import Embedder
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import (
    EmbedderMisconfigured,
    EmbedderUnavailable,
    RequestGivenUp,
)
from memory_service.embedding.layer import Layer

log = structlog.get_logger(__name__)

# Callers seldom wait longer. An embedder that lets them leave after this time counts as failing: one that hangs would
# otherwise never reach its own timeout. One that they leave earlier may be as well as ever.
PATIENCE_S = 2.0
# However long the provider asks to be left alone, it is asked again after this time.
LONGEST_WISH_S = 600.0
# What callers are told while the fate of all hangs on one request.
_PROBE_RETRY_AFTER_S = 1.0
# Cool-downs are up to so much longer, lest all processes ask again together.
_JITTER = 0.2


class CircuitState(Enum):
    """What happens to requests."""

    CLOSED = "closed"
    """They go through."""
    OPEN = "open"
    """They fail at once."""
    HALF_OPEN = "half_open"
    """One goes through, to see how the embedder does; the others fail at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerOptions:
    """When the circuit opens, and for how long."""

    failures: int
    """Failures in a row that open it."""
    cool_down_s: float
    """How long it stays open; twice as long after each probe that fails."""
    longest_cool_down_s: float


class CircuitBreaker(Layer[Embedder]):
    """An Embedder that hands requests to another one, but lets them fail at once while that one keeps failing.

    An EmbedderUnavailable is a failure. Any answer ends the row of failures, also EmbedderMisconfigured: it comes fast,
    and tells the operator more than an open circuit. TextNotEmbeddable says nothing, since it may come without the
    provider having been asked; nor do requests that were given up early.

    Safe to use from many threads.
    """

    def __init__(
        self,
        embedder: Embedder,
        options: BreakerOptions,
        *,
        on_state: Callable[[CircuitState], object] = lambda _: None,
        on_refusal: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins closed.

        Args:
            embedder: Whom to ask; closed together with this object.
            options: When the circuit opens, and for how long.
            on_state: Told each new state.
            on_refusal: Called for each request that fails without being made.
            clock: Returns seconds.
        """
        super().__init__(embedder)
        self._options = options
        self._on_state = on_state
        self._on_refusal = on_refusal
        self._clock = clock
        self._lock = threading.Lock()
        self._state = CircuitState.CLOSED
        self._epoch = 0
        """Grows with each change of state: answers to requests of an earlier one say nothing of now."""
        self._failures = 0
        self._reason = ""
        """The last failure's."""
        self._probing = False
        self._cool_down_s = options.cool_down_s
        self._open_until = 0.0

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """See Embedder; raises EmbedderUnavailable at once while the circuit is open."""
        epoch = self._enter()
        started_at = self._clock()
        try:
            vectors = self._inner.embed(texts, timeout_s=timeout_s, cancellation=cancellation)
        except EmbedderUnavailable as error:
            if isinstance(error, RequestGivenUp) and self._clock() - started_at < PATIENCE_S:
                self._learnt_nothing(epoch)
            else:
                self._failed(epoch, error)
            raise
        except EmbedderMisconfigured:
            self._answered(epoch)
            raise
        except BaseException:
            self._learnt_nothing(epoch)
            raise
        self._answered(epoch)
        return vectors

    def _enter(self) -> int:
        """Returns the epoch of a request that may be made."""
        with self._lock:
            now = self._clock()
            if self._state is CircuitState.OPEN and now >= self._open_until:
                self._change(CircuitState.HALF_OPEN)
            if self._state is CircuitState.CLOSED:
                return self._epoch
            if self._state is CircuitState.HALF_OPEN and not self._probing:
                self._probing = True
                return self._epoch
            wait_s = self._open_until - now if self._state is CircuitState.OPEN else _PROBE_RETRY_AFTER_S
            reason = self._reason
        self._on_refusal()
        raise EmbedderUnavailable(f"{reason}; it is left alone for a while", retry_after_s=wait_s)

    def _answered(self, epoch: int) -> None:
        with self._lock:
            if epoch != self._epoch:
                return
            self._failures = 0
            if self._state is CircuitState.HALF_OPEN:
                self._cool_down_s = self._options.cool_down_s
                self._change(CircuitState.CLOSED)
                log.info("embedding_circuit_closed")

    def _learnt_nothing(self, epoch: int) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._probing = False

    def _failed(self, epoch: int, error: EmbedderUnavailable) -> None:
        with self._lock:
            if epoch != self._epoch:
                return
            self._failures += 1
            closed = self._state is CircuitState.CLOSED
            if closed and self._failures < self._options.failures:
                return
            self._reason = str(error)
            cool_down_s = round(self._open(wish_s=error.retry_after_s), 1)
            if closed:
                log.warning("embedding_circuit_opened", reason=self._reason, cool_down_s=cool_down_s)
            else:
                log.info("embedding_probe_failed", reason=self._reason, cool_down_s=cool_down_s)

    def _open(self, *, wish_s: float) -> float:
        """Opens the circuit, and returns for how many seconds."""
        jitter = 1 + random.uniform(0, _JITTER)  # noqa: S311 - spreads probes, keeps no secret
        cool_down_s = max(self._cool_down_s, min(wish_s, LONGEST_WISH_S)) * jitter
        self._open_until = self._clock() + cool_down_s
        self._cool_down_s = min(2 * self._cool_down_s, self._options.longest_cool_down_s)
        self._change(CircuitState.OPEN)
        return cool_down_s

    def _change(self, state: CircuitState) -> None:
        self._state = state
        self._epoch += 1
        self._probing = False
        self._on_state(state)
