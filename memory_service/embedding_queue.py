"""The threads of a process that give waiting memories (db/embedding_jobs.py) their embeddings.

Any number of them, in any number of processes, work on one queue. A text that the model refuses is given up at once
and costs no other text anything. While the provider is down each process tries a single text every so often, so that
an outage uses up few of the attempts that texts have.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from db import embedding_jobs
from db.cancellation import Call
from db.embedding_jobs import EmbeddingJob
from db.embedding_turns import Turns
from db.errors import EmbeddingSpaceChanged
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.backoff import Backoff
from memory_service.embedding.errors import EmbedderUnavailable
from memory_service.embedding_attempts import Attempts, CountOutcomes
from memory_service.text_embeddings import TextEmbeddings

log = structlog.get_logger(__name__)

# The part of a lease in which the provider has to answer; the rest is for writing its answer down.
ANSWER_SHARE = 0.8
# From this attempt on a text is embedded alone: one that breaks the provider must not take others with it for ever.
ALONE_FROM_ATTEMPT = 4
# How soon it is noticed that the provider is back.
LONGEST_PAUSE_S = 60.0
LONGEST_DELAY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """How a process works on the queue."""

    threads: int
    """0: it leaves the queue to others."""
    poll_s: float
    """How often the queue is looked at without having been woken."""
    batch: int
    """Most texts embedded together."""
    lease_s: float
    """After which a job that was taken, and of which nothing more was heard, is free for others."""
    max_attempts: int
    first_delay_s: float
    """Before the second attempt; doubled for each further one, up to LONGEST_DELAY_S."""


class EmbeddingQueue:
    """Works on the queue in the background, from `start` to `close`."""

    def __init__(
        self,
        database: Database,
        embeddings: TextEmbeddings,
        options: QueueOptions,
        *,
        clock: Callable[[], datetime],
        count: CountOutcomes,
    ) -> None:
        self._database = database
        self._options = options
        self._clock = clock
        self._attempts = Attempts(
            database=database,
            embeddings=embeddings,
            max_attempts=options.max_attempts,
            delays=Backoff(first_s=options.first_delay_s, longest_s=LONGEST_DELAY_S),
            clock=clock,
            count=count,
        )
        self._outage = Outage(Backoff(first_s=options.first_delay_s, longest_s=LONGEST_PAUSE_S))
        self._calls = CancellableCalls()
        self._turns = Turns()
        self._threads = [
            PeriodicThread(f"embedding-queue-{number}", self.embed_due, interval_s=options.poll_s)
            for number in range(options.threads)
        ]

    def start(self) -> None:
        """Starts working."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Lets the threads look at the queue now. Never blocks."""
        for thread in self._threads:
            thread.wake()

    def close(self) -> None:
        """Ends the threads; what is not embedded yet is given back to the queue."""
        self._calls.cancel_all()
        for thread in self._threads:
            thread.close()

    def embed_due(self) -> None:
        """Embeds what is due, until nothing is, the provider fails, the queue is closed or the database has moved on.

        A database that has moved to another embedding space has made all jobs due again, for whoever embeds for that.
        """
        with suppress(EmbeddingSpaceChanged):
            while not self._resting and (jobs := self._take()):
                untried = self._embed(jobs)
                self._attempts.release(untried)

    @property
    def _resting(self) -> bool:
        return self._calls.cancelled or self._outage.pausing

    def _take(self) -> list[EmbeddingJob]:
        limit = 1 if self._outage.failures else self._options.batch
        now = self._clock()
        until = now + timedelta(seconds=self._options.lease_s)
        return self._database.write(
            self._database.call(),
            lambda conn: embedding_jobs.take(conn, now=now, leased_until=until, limit=limit, turns=self._turns),
            user_id=ACROSS_USERS,
        )

    def _embed(self, jobs: list[EmbeddingJob]) -> list[EmbeddingJob]:
        """Embeds jobs; returns those for which there was no time, or no provider."""
        untried = list(jobs)
        for together in _groups(jobs):
            timeout_s = (together[0].leased_until - self._clock()).total_seconds()
            timeout_s -= self._options.lease_s * (1 - ANSWER_SHARE)
            if self._resting or timeout_s <= 0:
                break
            untried = [job for job in untried if job not in together]
            with self._calls.track(self._database.call(timeout_s=timeout_s)) as call:
                failure = self._attempts.embed(together, call)
            if failure is None:
                self._outage.over()
            else:
                wished_s = failure.retry_after_s if isinstance(failure, EmbedderUnavailable) else 0.0
                self._outage.failed(wished_s)
        return untried


def _groups(jobs: list[EmbeddingJob]) -> Iterator[list[EmbeddingJob]]:
    """Yields jobs to be embedded together: all of those that have not failed repeatedly, then each of the others."""
    if fresh := [job for job in jobs if job.attempts < ALONE_FROM_ATTEMPT]:
        yield fresh
    yield from ([job] for job in jobs if job.attempts >= ALONE_FROM_ATTEMPT)


class Outage:
    """How often the provider has failed in a row, and until when it is left alone."""

    def __init__(self, pauses: Backoff) -> None:
        self._pauses = pauses
        self._until = 0.0
        self.failures = 0
        """0: it answered the last time."""

    @property
    def pausing(self) -> bool:
        """Whether it is to be left alone at the moment."""
        return time.monotonic() < self._until

    def failed(self, wished_s: float) -> None:
        """Notes a failure; `wished_s` is how long the provider asks to be left alone, 0 if it does not."""
        self.failures += 1
        pause_s = max(self._pauses.delay_s(self.failures), min(wished_s, LONGEST_PAUSE_S))
        self._until = time.monotonic() + pause_s
        log.warning("embedding_queue_paused", failures=self.failures, pause_s=round(pause_s, 1))

    def over(self) -> None:
        """Notes an answer."""
        if self.failures:
            log.info("embedding_queue_resumed", failures=self.failures)
        self.failures = 0


class CancellableCalls:
    """The calls under way, all of which can be cancelled once and for all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self.cancelled = False

    @contextmanager
    def track(self, call: Call) -> Iterator[Call]:
        """Yields the call, cancelled if `cancel_all` was called before."""
        with self._lock:
            self._calls.add(call)
            if self.cancelled:
                call.cancel()
        try:
            yield call
        finally:
            with self._lock:
                self._calls.discard(call)

    def cancel_all(self) -> None:
        """Cancels the calls under way, and those to come."""
        with self._lock:
            self.cancelled = True
            for call in self._calls:
                call.cancel()
