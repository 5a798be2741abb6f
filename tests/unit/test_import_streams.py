"""Import streams: how many there may be, and that one which sends nothing makes room for another."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from memory_service import import_streams
from memory_service.access.errors import Overloaded
from memory_service.import_streams import ImportStreams

LIMIT_S = 10.0


@pytest.fixture
def streams() -> Iterator[ImportStreams]:
    with closing(ImportStreams(2)) as streams:
        yield streams


class Silent:
    """An import that begins, and sends nothing."""

    def __init__(self, streams: ImportStreams, threads: ThreadPoolExecutor) -> None:
        self._released = threading.Event()
        self._begun = threading.Event()
        self.ended: Future[Any] = threads.submit(self._run, streams)
        assert self._begun.wait(LIMIT_S)

    def _run(self, streams: ImportStreams) -> None:
        with streams.admit(self._nothing()) as chunks:
            self._begun.set()
            next(chunks)

    def _nothing(self) -> Iterator[Any]:
        self._released.wait(LIMIT_S)
        yield from ()

    def release(self) -> None:
        """Lets it end."""
        self._released.set()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def admitted(streams: ImportStreams) -> bool:
    try:
        with streams.admit(iter(())):
            return True
    except Overloaded:
        return False


@pytest.mark.parametrize("idle_s", [0.05, 60.0])
def test_an_import_that_sends_nothing_gives_way_after_its_time(
    streams: ImportStreams, monkeypatch: pytest.MonkeyPatch, idle_s: float
) -> None:
    monkeypatch.setattr(import_streams, "IDLE_S", idle_s)
    with ThreadPoolExecutor(2) as threads:
        silent = [Silent(streams, threads) for _ in range(2)]
        assert not admitted(streams), "nobody has been silent for long"
        if idle_s < 1:
            eventually(lambda: admitted(streams))
            [ended] = [one for one in silent if one.ended.done()]
            with pytest.raises(Overloaded, match="gave way to another import"):
                ended.ended.result()
        else:
            time.sleep(0.1)
            assert not admitted(streams)
            assert not any(one.ended.done() for one in silent)
        for one in silent:
            one.release()
