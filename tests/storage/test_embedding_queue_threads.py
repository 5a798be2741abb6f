"""The threads of the embedding queue: what wakes them, what they do unasked, what they leave when they end."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from db.pool import Database
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderUnavailable
from tests.clock import Clock
from tests.fix_database import NewDatabase
from tests.storage.concurrency import LIMIT_S, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.queue_worker import Worker, counts, stored
from tests.storage.sample_embedder import SampleEmbedder
from tests.storage.sample_memories import NOW, rows


@pytest.fixture
def database(new_database: NewDatabase, open_database: OpenDatabase) -> Database:
    """A database of the test's own: the queue is one for all users."""
    return open_database(new_database(), max_size=8, timeout_s=10.0)


@pytest.fixture
def started(database: Database, clock: Clock) -> Iterator[Callable[..., Worker]]:
    """A function starting workers, `started(embedder, **options)`, that are closed after the test."""
    with ExitStack() as closing:

        def start(embedder: SampleEmbedder, **options: Any) -> Worker:
            worker = Worker(database, embedder, clock, **options)
            worker.queue.start()
            closing.callback(worker.queue.close)
            return worker

        yield start


def test_a_woken_thread_works_at_once(
    database: Database, embedder: SampleEmbedder, started: Callable[..., Worker]
) -> None:
    worker = started(embedder, threads=2)
    for number in range(3):
        stored(database, f"text {number}")
        worker.queue.wake()
        wait_for(lambda: counts(database) == (0, 0))


def test_a_thread_that_nobody_wakes_looks_by_itself(
    database: Database, embedder: SampleEmbedder, started: Callable[..., Worker]
) -> None:
    started(embedder, poll_s=0.01)
    stored(database, "text")
    wait_for(lambda: counts(database) == (0, 0))


def test_without_threads_the_queue_is_left_to_others(
    database: Database, embedder: SampleEmbedder, started: Callable[..., Worker]
) -> None:
    worker = started(embedder, threads=0)
    stored(database, "text")
    worker.queue.wake()
    worker.queue.close()
    assert counts(database) == (1, 0)


class Hanging(SampleEmbedder):
    """Answers nobody until it is told that nobody waits any more."""

    def __init__(self) -> None:
        super().__init__(cacheable=False)
        self.hangs = threading.Event()

    def embed(
        self,
        texts: Sequence[str],  # noqa: ARG002 - the protocol's
        *,
        timeout_s: float,  # noqa: ARG002 - likewise
        cancellation: Cancellation | None = None,
    ) -> NDArray[np.float32]:
        """Fails once the call is cancelled."""
        given_up = threading.Event()
        assert cancellation is not None
        with cancellation.stopping(given_up.set):
            self.hangs.set()
            assert given_up.wait(LIMIT_S)
        raise EmbedderUnavailable("the request was given up", retry_after_s=1)


def test_closing_gives_back_what_is_not_embedded_yet(database: Database, started: Callable[..., Worker]) -> None:
    stored(database, *[f"text {number}" for number in range(10)])
    embedder = Hanging()
    worker = started(embedder)
    worker.queue.wake()
    assert embedder.hangs.wait(LIMIT_S)
    worker.queue.close()
    assert worker.outcomes == {"released": 8}
    assert rows(database, b"SELECT DISTINCT attempts, next_attempt_at, last_error FROM embedding_jobs") == [
        (0, NOW, None)
    ]


def test_a_closed_queue_takes_nothing(database: Database, embedder: SampleEmbedder, clock: Clock) -> None:
    worker = Worker(database, embedder, clock, threads=0)
    stored(database, "text")
    worker.queue.close()
    worker.run()
    assert embedder.asked == []
