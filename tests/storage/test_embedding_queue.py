"""Working on the embedding queue: what is embedded, what is left, and how a failing provider is borne with."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import numpy as np
import pytest
from numpy.typing import NDArray

from db import embedding_jobs
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.embedding.cancellation import Cancellation
from memory_service.embedding.errors import EmbedderMisconfigured, EmbedderUnavailable, EmbeddingError
from memory_service.embedding_queue import Outage
from tests.clock import Clock
from tests.fix_database import NewDatabase
from tests.storage.concurrency import at_once
from tests.storage.conftest import OpenDatabase
from tests.storage.queue_worker import OPTIONS, Worker, counts, stored, waiting
from tests.storage.sample_embedder import SampleEmbedder, vector_of
from tests.storage.sample_memories import NOW, hard_delete, read, rows, store

DOWN = EmbedderUnavailable("it is down", retry_after_s=0)


@pytest.fixture
def database(new_database: NewDatabase, open_database: OpenDatabase) -> Database:
    """A database of the test's own: the queue is one for all users."""
    return open_database(new_database(), max_size=8, timeout_s=10.0)


@pytest.fixture
def worker(database: Database, embedder: SampleEmbedder, clock: Clock) -> Worker:
    """A worker whose thread is not started: it works when the test says so."""
    return Worker(database, embedder, clock)


def assert_embedded(database: Database, memory_id: UUID, text: str, *, user_id: str = "ada") -> None:
    embedding = read(database, user_id, memory_id).embedding
    assert embedding is not None
    assert embedding.original() == pytest.approx(vector_of(text), abs=0.02)


def errors(database: Database) -> dict[str, str | None]:
    """Returns what is told of each memory that has no embedding, by content."""
    return dict(rows(database, b"SELECT content, embedding_error FROM memory_entries WHERE embedding IS NULL"))


def test_everything_due_is_embedded_in_batches(database: Database, embedder: SampleEmbedder, worker: Worker) -> None:
    texts = [f"text {number}" for number in range(20)]
    ids = stored(database, *texts)
    [other] = stored(database, "text 0", user_id="bob")

    worker.run()

    # Users take turns: the first batch of eight jobs has the same text twice.
    assert [len(asked) for asked in embedder.asked] == [7, 8, 5]
    for memory_id, text in zip(ids, texts, strict=True):
        assert_embedded(database, memory_id, text)
    assert_embedded(database, other, "text 0", user_id="bob")
    assert worker.outcomes == {"embedded": 21}
    assert counts(database) == (0, 0)


def test_an_empty_queue_asks_nobody(embedder: SampleEmbedder, worker: Worker) -> None:
    worker.run()
    assert embedder.asked == []


def test_what_is_embedded_in_place_of_the_content(database: Database, worker: Worker) -> None:
    memory = waiting("shown", embed_text="meant")
    store(database, "ada", memory)
    worker.run()
    assert_embedded(database, memory.id, "meant")


def test_a_refused_text_costs_the_others_nothing(database: Database, embedder: SampleEmbedder, worker: Worker) -> None:
    embedder.refused = {"bad", "worse"}
    stored(database, "one", "bad", "two", "worse", "bad")
    worker.run()
    assert errors(database) == {"bad": "is refused", "worse": "is refused"}
    assert worker.outcomes == {"embedded": 2, "refused": 3}
    assert counts(database) == (0, 3)

    worker.run()
    assert len(embedder.asked) == 4, "a refused text is not tried again"


def test_a_vector_without_direction_is_a_refusal(database: Database, embedder: SampleEmbedder, worker: Worker) -> None:
    embedder.special = {"nothing": np.zeros(8, np.float32)}
    stored(database, "nothing", "something")
    worker.run()
    assert errors(database) == {"nothing": "its embedding is the zero vector, which has no direction"}


@pytest.mark.parametrize("error", [DOWN, EmbedderMisconfigured("it wants another key")], ids=str)
def test_an_outage_costs_one_attempt_at_a_time(
    database: Database, embedder: SampleEmbedder, worker: Worker, clock: Clock, error: EmbeddingError
) -> None:
    embedder.error = error
    stored(database, *[f"text {number}" for number in range(20)])
    for _ in range(6):
        worker.run()
        clock.advance(600)
    assert [len(asked) for asked in embedder.asked] == [8, 1, 1, 1, 1, 1]
    attempts = Counter(count for [count] in rows(database, b"SELECT attempts FROM embedding_jobs"))
    assert attempts == {0: 7, 1: 13}, "those never tried come first"
    assert {error for [error] in rows(database, b"SELECT last_error FROM embedding_jobs WHERE attempts > 0")} == {
        str(error)
    }

    embedder.error = None
    worker.run()
    assert counts(database) == (0, 0)
    assert worker.outcomes == {"postponed": 13, "embedded": 20}


def test_a_provider_is_left_alone_as_long_as_it_asks(
    database: Database, embedder: SampleEmbedder, worker: Worker
) -> None:
    embedder.error = EmbedderUnavailable("too many requests", retry_after_s=30)
    stored(database, "text")
    worker.queue.embed_due()
    stored(database, "more")
    worker.queue.embed_due()
    assert len(embedder.asked) == 1


def test_too_many_failures_are_the_end_of_it(
    database: Database, embedder: SampleEmbedder, worker: Worker, clock: Clock
) -> None:
    embedder.error = DOWN
    stored(database, "text")
    for _ in range(5):
        worker.run()
        clock.advance(600)
    assert len(embedder.asked) == OPTIONS.max_attempts
    assert errors(database) == {"text": "it is down"}
    assert worker.outcomes == {"postponed": 2, "given_up": 1}


def test_the_delays_grow(
    database: Database, embedder: SampleEmbedder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(database, embedder, clock, max_attempts=50, first_delay_s=8.0)
    monkeypatch.setattr(Outage, "failed", lambda *_: None)  # pauses take real time
    embedder.error = DOWN
    stored(database, "text")
    delays = []
    for _ in range(9):
        worker.run()
        [[due]] = rows(database, b"SELECT next_attempt_at FROM embedding_jobs")
        delays.append((due - clock.now).total_seconds())
        clock.now = due
    for delay, doubled in zip(delays, [8, 16, 32, 64, 128, 256, 512, 600, 600], strict=True):
        assert doubled / 2 <= delay <= doubled


def test_a_job_whose_processes_die_is_given_up_in_the_end(
    database: Database, embedder: SampleEmbedder, worker: Worker, clock: Clock
) -> None:
    stored(database, "deadly")
    for _ in range(OPTIONS.max_attempts):
        until = clock.now + timedelta(seconds=1)
        database.write(
            database.call(),
            lambda conn, until=until: embedding_jobs.take(conn, now=clock.now, leased_until=until, limit=1),  # type: ignore[misc]
            user_id=ACROSS_USERS,
        )
        clock.advance(1)
    worker.run()
    assert embedder.asked == []
    assert errors(database) == {"deadly": "none of 3 attempts came to an end"}


class Fragile(SampleEmbedder):
    """Breaks down over one text, whatever comes with it."""

    def embed(
        self, texts: Sequence[str], *, timeout_s: float, cancellation: Cancellation | None = None
    ) -> NDArray[np.float32]:
        """Returns the vectors, or fails."""
        self.error = DOWN if "poison" in texts else None
        return super().embed(texts, timeout_s=timeout_s, cancellation=cancellation)


def test_a_text_that_breaks_the_provider_does_not_take_others_with_it(database: Database, clock: Clock) -> None:
    worker = Worker(database, Fragile(cacheable=False), clock, max_attempts=6)
    stored(database, "poison", *[f"text {number}" for number in range(7)])
    for number in range(12):
        worker.run()
        stored(database, f"later {number}")
        clock.advance(600)
    worker.run()
    assert counts(database) == (0, 1)
    assert errors(database) == {"poison": "it is down"}


def test_what_changed_meanwhile_is_obsolete(database: Database, embedder: SampleEmbedder, worker: Worker) -> None:
    gone, kept = stored(database, "gone", "kept")
    embedder.meanwhile = lambda: hard_delete(database, "ada", gone)
    worker.run()
    assert_embedded(database, kept, "kept")
    assert worker.outcomes == {"embedded": 1, "obsolete": 1}


def test_many_workers_embed_each_text_once(database: Database, clock: Clock) -> None:
    texts = [f"text {number}" for number in range(100)]
    stored(database, *texts)
    embedders = [SampleEmbedder(cacheable=False) for _ in range(4)]
    workers = [Worker(database, embedder, clock) for embedder in embedders]

    for future in at_once([worker.run for worker in workers]):
        future.result()

    assert sorted(text for embedder in embedders for asked in embedder.asked for text in asked) == sorted(texts)
    assert counts(database) == (0, 0)


def test_jobs_of_a_process_that_died_are_taken_over(database: Database, worker: Worker, clock: Clock) -> None:
    [memory_id] = stored(database, "text")
    until = NOW + timedelta(seconds=OPTIONS.lease_s)
    database.write(
        database.call(),
        lambda conn: embedding_jobs.take(conn, now=NOW, leased_until=until, limit=1),
        user_id=ACROSS_USERS,
    )  # and nothing more
    worker.run()
    assert counts(database) == (1, 0)
    clock.advance(OPTIONS.lease_s)
    worker.run()
    assert_embedded(database, memory_id, "text")


def test_jobs_whose_lease_runs_out_are_given_back(database: Database, embedder: SampleEmbedder, clock: Clock) -> None:
    worker = Worker(database, embedder, clock, max_attempts=50)
    stored(database, "slow", "next")
    # Tried often, so each is embedded alone.
    database.write(
        database.call(), lambda conn: conn.execute(b"UPDATE embedding_jobs SET attempts = 10"), user_id=ACROSS_USERS
    )
    embedder.meanwhile = lambda: clock.advance(OPTIONS.lease_s * 0.9)
    worker.run()
    assert [len(asked) for asked in embedder.asked] == [1, 1], "the second one in a lease of its own"
    assert worker.outcomes == {"embedded": 2, "released": 1}
