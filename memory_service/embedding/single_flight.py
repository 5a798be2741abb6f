"""Asking once for a text that several callers want at the same time."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderUnavailable, RequestGivenUp, TextNotEmbeddable
from memory_service.embedding.layer import Layer
from memory_service.embedding.micro_batching import Answer, MicroBatching

_RETRY_AFTER_S = 1.0


@dataclass(slots=True, eq=False)
class _Flight:
    """A text that is asked for."""

    answer: Answer
    callers: int
    """How many wait for it; the last one to leave cancels it."""


class SingleFlight(Layer[MicroBatching]):
    """An Embedder whose callers share the answer to a text that is asked for already.

    No caller leads: each waits until its own deadline or cancellation, and takes nothing from the others by leaving.
    What the provider answers, an error as well, reaches all who waited for it. Nothing is remembered beyond that.

    Safe to use from many threads.
    """

    def __init__(self, batching: MicroBatching, *, on_shared: Callable[[int], object] = lambda _: None) -> None:
        """Asks through `batching`, closed together with this object; `on_shared` is told how many texts were shared."""
        super().__init__(batching)
        self._on_shared = on_shared
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Returns the embeddings of `texts`, in their order, shape (len(texts), dimensions), not normalized.

        Raises:
            TextNotEmbeddable: One of the texts cannot be embedded.
            EmbedderUnavailable: The provider failed, or no answer came within `timeout_s`.
            RequestGivenUp: `cancellation` happened first.
            EmbedderMisconfigured: The embedder cannot work until its settings are mended.
        """
        deadline = time.monotonic() + timeout_s
        flights = self._board(texts)
        try:
            waiting = _Waiting([flight.answer for flight in flights.values()])
            with cancellation.stopping(waiting.give_up) if cancellation is not None else nullcontext():
                waiting.wait(max(0.0, deadline - time.monotonic()))
            return self._read(texts, flights, waiting, timeout_s)
        finally:
            self._leave(flights)

    def _board(self, texts: Sequence[str]) -> dict[str, _Flight]:
        """Returns the flight of each text, those of new ones begun; `_leave` has to follow."""
        with self._lock:
            # An answer that is there already was for those who waited: an error of then need not be one of now.
            shared = {text: self._flights[text] for text in texts if self._is_under_way(text)}
            new = [text for text in dict.fromkeys(texts) if text not in shared]
            begun = {
                text: _Flight(answer, callers=0) for text, answer in zip(new, self._inner.submit(new), strict=True)
            }
            self._flights |= begun
            flights = shared | begun
            for flight in flights.values():
                flight.callers += 1
        if shared:
            self._on_shared(len(shared))
        return flights

    def _is_under_way(self, text: str) -> bool:
        flight = self._flights.get(text)
        return flight is not None and not flight.answer.done()

    def _leave(self, flights: dict[str, _Flight]) -> None:
        left = []
        with self._lock:
            for text, flight in flights.items():
                flight.callers -= 1
                if not flight.callers:
                    left.append(flight)
                    if self._flights.get(text) is flight:
                        del self._flights[text]
        for flight in left:  # outside the lock: cancelling calls back what runs
            flight.answer.cancel()

    def _read(
        self, texts: Sequence[str], flights: dict[str, _Flight], waiting: "_Waiting", timeout_s: float
    ) -> NDArray[np.float32]:
        for index, text in enumerate(texts):
            answer = flights[text].answer
            error = answer.exception() if answer.done() else None
            if isinstance(error, TextNotEmbeddable):
                raise TextNotEmbeddable(index, error.reason) from None
            if error is not None:
                raise error
        if waiting.given_up:
            raise RequestGivenUp("the request was given up", retry_after_s=_RETRY_AFTER_S)
        if not all(flight.answer.done() for flight in flights.values()):
            raise EmbedderUnavailable(f"there was no embedding within {timeout_s:g} s", retry_after_s=_RETRY_AFTER_S)
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for index, text in enumerate(texts):
            vectors[index] = flights[text].answer.result()
        return vectors


class _Waiting:
    """One caller's wait: until all answers are there, one of them is an error, or the caller gives up."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.given_up = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._missing = len(answers)
        if not answers:
            self._over.set()
        for answer in answers:
            answer.add_done_callback(self._arrived)

    def wait(self, timeout_s: float) -> None:
        """Returns when the wait is over, or after `timeout_s`."""
        self._over.wait(timeout_s)

    def give_up(self) -> None:
        """Ends the wait."""
        self.given_up = True
        self._over.set()

    def _arrived(self, answer: Answer) -> None:
        with self._lock:
            self._missing -= 1
        # Cancelled answers are those that this caller, too, has left.
        if not self._missing or answer.cancelled() or answer.exception() is not None:
            self._over.set()
