"""Joining the texts that callers want at the same time into few requests to an embedder."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from memory_service.embedding import Embedder
from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, TextNotEmbeddable
from memory_service.embedding.layer import Layer

Vector = NDArray[np.float32]
Answer = Future[Vector]


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A text that somebody waits for, until its answer is there or cancelled."""

    text: str
    caller: int
    answer: Answer = field(default_factory=Future)

    @property
    def size(self) -> int:
        return len(self.text.encode())


class MicroBatching(Layer[Embedder]):
    """Answers each text with a future, and asks an embedder for many of them at a time where many are waiting.

    A text goes at once while fewer than `concurrent_requests` are under way, so an idle embedder costs nobody a wait.
    What comes meanwhile is gathered and goes with the next request, whose texts are taken from the callers in turn: a
    search never waits for the whole of a large batch that came before it.

    Requests run on threads of this object and in their own time, whatever the deadline of those who wait. Whoever
    leaves cancels the answers they waited for; a request nobody waits for any more is given up.

    Safe to use from many threads.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        concurrent_requests: int,
        max_texts: int,
        max_bytes: int,
        timeout_s: float,
        on_request: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Starts no thread yet.

        Args:
            embedder: Whom to ask; closed together with this object.
            concurrent_requests: Most requests under way.
            max_texts: Most texts in a request.
            max_bytes: Most bytes of text in a request of more than one text.
            timeout_s: How long the embedder has for a request.
            on_request: Told the number of texts of each request.
        """
        super().__init__(embedder)
        self._concurrent_requests = concurrent_requests
        self._max_texts = max_texts
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._on_request = on_request
        self._callers = count()
        self._lock = threading.Lock()
        self._waiting: deque[deque[_Wanted]] = deque()
        """What each caller waits for and is not asked for yet; none is empty."""
        self._under_way = 0
        self._closed = False
        self._threads = ThreadPoolExecutor(concurrent_requests, thread_name_prefix="embedding-request")

    @property
    def waiting(self) -> int:
        """How many texts wait for a request to end before they are asked for."""
        with self._lock:
            return sum(len(texts) for texts in self._waiting)

    def submit(self, texts: Sequence[str]) -> list[Answer]:
        """Returns the future vector of each text, shape (dimensions,); each fails with one of Embedder's errors.

        A TextNotEmbeddable is that text's own, its `index` 0. Cancelling a future says that nobody waits for it any
        more.

        Raises:
            EmbedderUnavailable: This object is closed.
        """
        caller = next(self._callers)
        wanted = deque(_Wanted(text, caller) for text in texts)
        answers = [one.answer for one in wanted]
        with self._lock:
            if self._closed:
                raise _closed()
            if wanted:
                self._waiting.append(wanted)
            while self._under_way < self._concurrent_requests and (request := self._next_request()):
                self._under_way += 1
                self._threads.submit(self._work, request)
        return answers

    def close(self) -> None:
        """Closes the embedder, and fails what waits with EmbedderUnavailable."""
        with self._lock:
            self._closed = True
            left = [one for texts in self._waiting for one in texts]
            self._waiting.clear()
        _fail(left, _closed())
        super().close()
        self._threads.shutdown()

    def _work(self, request: list[_Wanted]) -> None:
        while request:
            self._answer(request)
            with self._lock:
                request = self._next_request()
                if not request:
                    self._under_way -= 1

    def _next_request(self) -> list[_Wanted]:
        """Removes the texts of a request from those that wait, one of each caller in turn; none: nobody waits."""
        request: list[_Wanted] = []
        size = 0
        while self._waiting and len(request) < self._max_texts:
            texts = self._waiting[0]
            if not texts[0].answer.cancelled():
                size += texts[0].size
                if request and size > self._max_bytes:
                    break
                request.append(texts[0])
            texts.popleft()
            self._waiting.popleft()
            if texts:
                self._waiting.append(texts)
        return request

    def _answer(self, request: list[_Wanted]) -> None:
        """Gives each text its vector or its error, with more requests where one of them spoils it for the others."""
        todo = [request]
        while todo:
            asked = [one for one in todo.pop() if not one.answer.cancelled()]
            if not asked:
                continue
            try:
                answers = self._ask(asked)
            except TextNotEmbeddable as refused:
                _fail([asked.pop(refused.index)], TextNotEmbeddable(0, refused.reason))
                todo.append(asked)
            except EmbedderMisconfigured as error:
                # It may be one text that makes the provider answer NaN; its caller alone has to bear that.
                callers = _by_caller(asked)
                if len(callers) == 1:
                    _fail(asked, error)
                else:
                    todo += callers
            except Exception as error:  # noqa: BLE001 - raised again in the threads of those who wait
                _fail(asked, error)
            else:
                for one, vector in answers:
                    with suppress(InvalidStateError):  # cancelled this moment
                        one.answer.set_result(vector)

    def _ask(self, asked: list[_Wanted]) -> list[tuple[_Wanted, Vector]]:
        self._on_request(len(asked))
        texts = [one.text for one in asked]
        vectors = self._inner.embed(texts, timeout_s=self._timeout_s, cancellation=_Abandonment(asked))
        return list(zip(asked, vectors, strict=True))


class _Abandonment:
    """The Cancellation of a request: happens when the last of its answers is cancelled."""

    def __init__(self, asked: Sequence[_Wanted]) -> None:
        self._asked = asked
        self._lock = threading.Lock()

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Calls `stop` when that happens while the context lasts."""
        left = len(self._asked)

        def ended(answer: Answer) -> None:
            nonlocal left
            if answer.cancelled():
                with self._lock:
                    left -= 1
                if not left:
                    stop()

        for one in self._asked:
            one.answer.add_done_callback(ended)
        yield


def _by_caller(asked: Sequence[_Wanted]) -> list[list[_Wanted]]:
    callers: dict[int, list[_Wanted]] = {}
    for one in asked:
        callers.setdefault(one.caller, []).append(one)
    return list(callers.values())


def _fail(wanted: Sequence[_Wanted], error: Exception) -> None:
    for one in wanted:
        with suppress(InvalidStateError):  # cancelled this moment
            one.answer.set_exception(error)


def _closed() -> EmbedderUnavailable:
    return EmbedderUnavailable("the embedder is closed", retry_after_s=1.0)
