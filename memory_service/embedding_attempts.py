"""One attempt at jobs of the embedding queue: embeds their texts and writes down what became of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from db import embedding_jobs
from db.cancellation import Call
from db.connection import Connection
from db.embedding_jobs import EmbeddingJob
from db.errors import CallCancelled, StatementTimeout
from db.pool import Database
from db.vectors import Embedding
from db.wall import ACROSS_USERS
from memory_service.backoff import Backoff
from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, TextNotEmbeddable
from memory_service.job_outcome import JobOutcome
from memory_service.text_embeddings import TextEmbeddings

log = structlog.get_logger(__name__)

NO_ANSWER = "the embedding provider did not answer in time"


CountOutcomes = Callable[[JobOutcome, int], object]
"""Counts so many jobs with this outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Makes attempts for the threads of a process."""

    database: Database
    embeddings: TextEmbeddings
    max_attempts: int
    delays: Backoff
    """Between the attempts at one job."""
    clock: Callable[[], datetime]
    count: CountOutcomes

    def embed(self, jobs: Sequence[EmbeddingJob], call: Call) -> EmbedderUnavailable | EmbedderMisconfigured | None:
        """Embeds the texts of jobs together; returns how the provider failed, if it did.

        A text that is refused is given up, and the others are tried without it. Where the provider fails all of them
        are postponed, where `call` is cancelled all are released.
        """
        left = [job for job in jobs if not self._give_up_if_worn_out(job)]
        while left:
            try:
                embeddings = self.embeddings.embed([job.text for job in left], call)
            except TextNotEmbeddable as error:
                self._give_up(left.pop(error.index), error.reason, JobOutcome.REFUSED)
            except (EmbedderUnavailable, EmbedderMisconfigured) as error:
                self._postpone(left, error)
                return error
            except StatementTimeout:
                failure = EmbedderUnavailable(NO_ANSWER, retry_after_s=0)
                self._postpone(left, failure)
                return failure
            except CallCancelled:
                self.release(left)
                return None
            else:
                self._complete(left, embeddings)
                return None
        return None

    def release(self, jobs: Sequence[EmbeddingJob]) -> None:
        """Gives back jobs that were taken and not tried."""
        if jobs:
            now = self.clock()
            self._write(lambda conn: embedding_jobs.release(conn, jobs, until=now))
            self.count(JobOutcome.RELEASED, len(jobs))

    def _complete(self, jobs: Sequence[EmbeddingJob], embeddings: Sequence[Embedding]) -> None:
        model = self.embeddings.model
        embedded = self.database.write(
            self.database.call(),
            lambda conn: embedding_jobs.complete(conn, jobs, embeddings, model=model),
            user_id=ACROSS_USERS,
        )
        self.count(JobOutcome.EMBEDDED, embedded)
        self.count(JobOutcome.OBSOLETE, len(jobs) - embedded)

    def _postpone(self, jobs: Sequence[EmbeddingJob], error: Exception) -> None:
        log.warning("embedding_postponed", memories=len(jobs), error=str(error))
        spent = [job for job in jobs if job.attempts >= self.max_attempts]
        for job in spent:
            self._give_up(job, str(error), JobOutcome.GIVEN_UP)
        if again := [job for job in jobs if job.attempts < self.max_attempts]:
            now = self.clock()
            times = [now + timedelta(seconds=self.delays.delay_s(job.attempts)) for job in again]
            self._write(lambda conn: embedding_jobs.postpone(conn, again, times, error=str(error)))
            self.count(JobOutcome.POSTPONED, len(again))

    def _give_up_if_worn_out(self, job: EmbeddingJob) -> bool:
        # Whoever made its last attempt did not live to write down how it ended.
        worn_out = job.attempts > self.max_attempts
        if worn_out:
            self._give_up(job, f"none of {self.max_attempts} attempts came to an end", JobOutcome.GIVEN_UP)
        return worn_out

    def _give_up(self, job: EmbeddingJob, error: str, outcome: JobOutcome) -> None:
        log.warning("embedding_given_up", memory_id=str(job.id), attempts=job.attempts, error=error)
        now = self.clock()
        self._write(lambda conn: embedding_jobs.give_up(conn, job, error=error, now=now))
        self.count(outcome, 1)

    def _write(self, change: Callable[[Connection], None]) -> None:
        self.database.write(self.database.call(), change, user_id=ACROSS_USERS)
