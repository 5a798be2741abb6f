"""An embedder whose requests a test answers by hand, in the order and at the moment it likes."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import RequestGivenUp
from tests.embedding.provider import vectors_of

DIMENSIONS = 8
LIMIT_S = 20.0


class HandRequest:
    """A request that waits for the test."""

    def __init__(self, texts: Sequence[str], timeout_s: float) -> None:
        self.texts = list(texts)
        self.timeout_s = timeout_s
        self.given_up = threading.Event()
        """Set once nobody waits for the answer."""
        self._answer: Future[NDArray[np.float32]] = Future()

    def answer(self) -> None:
        """Lets it return the vectors of its texts."""
        self._answer.set_result(vectors_of(self.texts, DIMENSIONS))

    def fail(self, error: Exception) -> None:
        """Lets it raise."""
        self._answer.set_exception(error)

    def run(self, cancellation: Cancellation | None) -> NDArray[np.float32]:
        """Returns or raises what the test says."""
        with cancellation.stopping(self._give_up) if cancellation is not None else nullcontext():
            return self._answer.result(LIMIT_S)

    def _give_up(self) -> None:
        self.given_up.set()
        if not self._answer.done():
            self._answer.set_exception(RequestGivenUp("nobody waits", retry_after_s=1.0))


class HandWorkedEmbedder:
    """Implements memory_service.embedding.Embedder."""

    model = "some-model"
    dimensions = DIMENSIONS
    cacheable = True

    def __init__(self) -> None:
        self.requests: list[HandRequest] = []
        self.closed = False
        self._automatic = False
        self._changed = threading.Condition()

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Waits for the test to say what becomes of the request."""
        request = HandRequest(texts, timeout_s)
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            if self._automatic:
                request.answer()
        return request.run(cancellation)

    def close(self) -> None:
        """Gives up what has not been answered."""
        self.closed = True
        for request in self.requests:
            request._give_up()  # noqa: SLF001 - of this module

    def answer_all(self) -> None:
        """Answers the last request, and from now on each that comes."""
        with self._changed:
            self._automatic = True
            self.requests[-1].answer()

    def request(self, number: int) -> HandRequest:
        """Returns the request of that number, counted from 0, once it has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) > number, LIMIT_S), "the request does not come"
        return self.requests[number]
