"""Reading a stream one ahead: nothing is lost or reordered, and whoever waits can be told to stop."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memory_service.read_ahead import ReadAhead

LIMIT_S = 10.0


class Stop(Exception):
    """Why a test ends a stream."""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def readers() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


def test_everything_comes_in_order() -> None:
    with ReadAhead(iter(range(1_000))) as items:
        assert list(items) == list(range(1_000))
        assert list(items) == []


def test_exactly_one_is_read_ahead() -> None:
    read: list[int] = []

    def stream() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    with ReadAhead(stream()) as items:
        eventually(lambda: read == [0])
        assert next(items) == 0
        eventually(lambda: read == [0, 1])
        time.sleep(0.02)
        assert read == [0, 1]


def test_an_error_comes_after_what_was_read_before_it() -> None:
    def stream() -> Iterator[int]:
        yield 1
        raise LookupError("the stream broke")

    with ReadAhead(stream()) as items:
        assert next(items) == 1
        for _ in range(2):
            with pytest.raises(LookupError, match="the stream broke"):
                next(items)


def test_it_says_how_long_somebody_waits() -> None:
    released = threading.Event()

    def stream() -> Iterator[int]:
        yield 1
        released.wait(LIMIT_S)
        yield 2

    with ReadAhead(stream()) as items:
        assert next(items) == 1
        assert items.waited_s == 0.0
        waiting = threading.Thread(target=next, args=(items,))
        waiting.start()
        eventually(lambda: items.waited_s > 0.02)
        released.set()
        waiting.join()
        assert items.waited_s == 0.0


def test_who_waits_is_told_to_stop() -> None:
    released = threading.Event()

    def stream() -> Iterator[int]:
        yield 1
        released.wait(LIMIT_S)

    with ReadAhead(stream()) as items:
        assert next(items) == 1
        threading.Timer(0.05, items.end, [Stop("enough")]).start()
        started_at = time.monotonic()
        with pytest.raises(Stop, match="enough"):
            next(items)
        assert time.monotonic() - started_at < LIMIT_S / 2
        items.end(Stop("too late"))
        with pytest.raises(Stop, match="enough"):
            next(items)
    released.set()
    eventually(lambda: readers() == 0)


def test_what_was_read_ahead_is_dropped_at_the_end() -> None:
    with ReadAhead(iter(range(10))) as items:
        assert next(items) == 0
        items.end(Stop())
        with pytest.raises(Stop):
            next(items)


def test_leaving_ends_the_thread() -> None:
    with ReadAhead(iter(range(10))) as items:
        next(items)
    eventually(lambda: readers() == 0)
    assert list(items) == []
