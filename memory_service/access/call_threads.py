"""The threads that calls of one kind work on, and how many calls may wait for them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class CallThreads(ThreadPoolExecutor):
    """Threads with a bounded queue: who submits asks first whether they are `full`.

    Counted from being submitted to the end, because only that is certain to be told: gRPC leaves out calls that were
    cancelled while they waited.
    """

    def __init__(self, kind: str, *, threads: int, queue: int, setting: str) -> None:
        super().__init__(threads, thread_name_prefix=kind)
        self.kind = kind
        """What the calls are, for metrics."""
        self.setting = setting
        """The setting that says how many there may be."""
        self._max_calls = threads + queue
        self._calls = 0
        self._counting = threading.Lock()
        self._of_this_thread = threading.local()

    @property
    def calls(self) -> int:
        """How many are worked on or wait."""
        return self._calls

    @property
    def full(self) -> bool:
        """Whether there are as many as may be."""
        return self._calls >= self._max_calls

    @property
    def crowded(self) -> bool:
        """Whether calls wait for a thread."""
        return self._calls > self._max_workers

    @property
    def waited_s(self) -> float:
        """How long the work of the calling thread, which is one of these, waited for it."""
        return float(self._of_this_thread.waited_s)

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """Has a thread do the work."""
        future = super().submit(self._begin, time.monotonic(), work, *arguments, **options)
        with self._counting:
            self._calls += 1
        future.add_done_callback(self._ended)
        return future

    def _begin(self, submitted_at: float, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        self._of_this_thread.waited_s = time.monotonic() - submitted_at
        return work(*arguments, **options)

    def _ended(self, _: Future[Any]) -> None:
        with self._counting:
            self._calls -= 1


class AtOnce(ThreadPoolExecutor):
    """No threads: work is done by whoever submits it, before `submit` returns. For what never waits.

    gRPC wants a ThreadPoolExecutor, whatever it does.
    """

    def __init__(self) -> None:
        super().__init__(1)  # which starts none

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """Does the work."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **options))
        except BaseException as error:  # noqa: BLE001 - handed on, as threads do
            future.set_exception(error)
        return future
