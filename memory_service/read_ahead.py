"""Reading a stream of requests one ahead: the next one arrives while the current one is worked on."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class ReadAhead(AbstractContextManager["ReadAhead[T]"], Iterator[T], Generic[T]):
    """Iterates over a stream that a thread of its own reads, until it ends or `end` is called.

    Without that thread, whoever waits for the next request could not be told to stop waiting: gRPC's iterator has
    neither a time-out nor a way to wake it.
    """

    def __init__(self, stream: Iterator[T]) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self._read: deque[T] = deque()
        self._error: BaseException | None = None
        self._finished = False
        """The stream has no more to give."""
        self._ended: Exception | None = None
        """Why nothing more is to be taken."""
        self._waits_since: float | None = None
        """time.monotonic() of when the next item was asked for; None while one is worked on."""

    @property
    def waited_s(self) -> float:
        """How long somebody has been waiting for the next item; 0 where nobody does."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def has_ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended is not None

    def __enter__(self) -> Self:
        # Ends when the call does, which is when gRPC's iterator returns: nobody has to wait for it.
        threading.Thread(target=self._run, name="read-ahead", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(StopIteration())

    def __next__(self) -> T:
        with self._changed:
            self._waits_since = time.monotonic()
            self._changed.wait_for(lambda: self._read or self._finished or self._ended)
            self._waits_since = None
            if self._ended is not None:
                raise self._ended
            if self._read:
                self._changed.notify_all()
                return self._read.popleft()
            raise StopIteration if self._error is None else self._error

    def end(self, reason: Exception) -> None:
        """Makes the next item, or the wait for it, raise `reason`; what was read ahead is dropped."""
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            for item in self._stream:
                with self._changed:
                    self._read.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: not self._read or self._ended)
                    if self._ended is not None:
                        return
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()
