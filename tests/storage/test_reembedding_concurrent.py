"""Servers at work while a database moves to another model and back: nobody mixes both models, nothing is lost."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from uuid import UUID

import numpy as np
import pytest
from pgvector import HalfVector

from db import embedding_jobs
from db.connection import Connection
from db.errors import Conflict, DatabaseUnavailable, EmbeddingSpaceChanged, MemoryExists, PoolExhausted
from db.filters import Filter
from db.memory import NewMemory
from db.pool import Database
from db.schema import EmbeddingSpace
from db.search import Means, Nearest, search
from db.search_plan import Coarse, SearchTuning
from db.search_statements import Metric
from db.update import Changes, update
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.concurrency import LIMIT_S, deadlocks, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.reembedding_calls import (
    NEW,
    OLD,
    begin,
    build,
    embedding_of,
    memory_of,
    reconnect,
    run_round,
    switch,
)
from tests.storage.sample_memories import LATER, NOW, new_memory, rows, store

OWNER = "owner"
SWITCHES = 4
# What a server tells its caller to try again after.
PASSING = (DatabaseUnavailable, PoolExhausted, Conflict)


class Server:
    """A process of the service: embeds by the model it believes in, and learns of another one by being refused."""

    def __init__(self, database: Database, *, number: int) -> None:
        self._database = database
        self._number = number
        self._counter = itertools.count()
        self.space = OLD
        self.refusals = 0
        self.stored: dict[UUID, str] = {}
        """What callers were told is stored, with its last text."""

    def _try(self, attempt: Callable[[Database, EmbeddingSpace], object]) -> bool:
        """Runs one attempt in the space believed in; returns whether it came through."""
        try:
            attempt(self._database.in_space(self.space), self.space)
        except EmbeddingSpaceChanged:
            self.refusals += 1
            self._follow()
        except PASSING:
            return False
        else:
            return True
        return False

    def _follow(self) -> None:
        with suppress(*PASSING):
            found = self._database.read(self._database.call(), lambda conn: conn.space, user_id=OWNER)
            assert found is not None
            self.space = found

    def insert(self) -> None:
        """Stores a memory, every third one without its embedding."""
        number = next(self._counter)
        text, memory_id = f"{self._number}/{number}", UUID(int=self._number << 64 | number)

        def attempt(view: Database, space: EmbeddingSpace) -> None:
            memory: NewMemory = memory_of(text, space, id=memory_id)
            if number % 3 == 0:
                memory = new_memory(id=memory_id, content=text, embedding=None, embedding_model=space.model)
            try:
                store(view, OWNER, memory)
            except MemoryExists:
                return  # by an attempt whose answer was lost

        while not self._try(attempt):
            pass
        self.stored[memory_id] = text

    def change(self) -> None:
        """Gives one of its memories another text."""
        memory_id = list(self.stored)[next(self._counter) % len(self.stored)]
        text = f"{self._number} changed {next(self._counter)}"

        def attempt(view: Database, space: EmbeddingSpace) -> None:
            embedding = embedding_of(text, space)
            changes = Changes(content=text, embedding=embedding, embedding_model=space.model)

            def write(conn: Connection) -> None:
                update(conn, OWNER, memory_id, changes, etag="", now=NOW, check_metadata=lambda _: None)

            view.write(view.call(), write, user_id=OWNER)

        while not self._try(attempt):
            pass
        self.stored[memory_id] = text

    def search(self) -> None:
        """Searches for a text; what is found has the similarity that its text has by the same model."""

        def attempt(view: Database, space: EmbeddingSpace) -> None:
            query = embedding_of(f"question {next(self._counter)}", space)
            nearest = Nearest(embedding=query, metric=Metric.COSINE, limit=10, filter=Filter(), exact=True)
            means = Means(coarse=Coarse.EMBEDDING, ann=None, user_rows=None, tuning=SearchTuning())
            answer = view.read(view.call(), lambda conn: search(conn, OWNER, nearest, means), user_id=OWNER)
            for hit in answer.hits:
                assert hit.memory.content is not None
                by_model = embedding_of(hit.memory.content, space)
                expected = float(query.unit.astype(np.float64) @ by_model.unit.astype(np.float64))
                assert hit.score == pytest.approx(expected, abs=2e-3), "an embedding of another model was found"

        self._try(attempt)

    def work_off(self) -> None:
        """Embeds some of what waits."""

        def attempt(view: Database, space: EmbeddingSpace) -> None:
            jobs = view.write(
                view.call(),
                lambda conn: embedding_jobs.take(conn, now=LATER, leased_until=LATER, limit=5),
                user_id=ACROSS_USERS,
            )
            embeddings = [embedding_of(job.text, space) for job in jobs]
            view.write(
                view.call(),
                lambda conn: embedding_jobs.complete(conn, jobs, embeddings, model=space.model),
                user_id=ACROSS_USERS,
            )

        self._try(attempt)


@contextmanager
def at_work(servers: list[Server]) -> Iterator[None]:
    """Lets the servers serve in threads of their own; what goes wrong in them is raised at the end."""
    stop = threading.Event()

    def serve(server: Server) -> None:
        server.insert()
        for act in itertools.cycle([server.insert, server.search, server.change, server.work_off, server.search]):
            if stop.is_set():
                return
            act()

    with ThreadPoolExecutor(len(servers)) as threads:
        working = [threads.submit(serve, server) for server in servers]
        try:
            yield
        finally:
            stop.set()
    for future in working:
        future.result()


ALL = b"""
SELECT m.id, m.content, m.embedding, m.embedding_model, m.standby_embedding, m.standby_embedding_model, m.standby_stale,
    j.id IS NOT NULL
FROM memory_entries m LEFT JOIN embedding_jobs j ON j.user_id = m.user_id AND j.id = m.id
"""


def test_servers_at_work_during_switches_never_mix_models(
    new_database: NewDatabase, open_database: OpenDatabase
) -> None:
    url = new_database()
    database, own = open_database(url, max_size=8, timeout_s=10.0), open_database(url, max_size=1, timeout_s=10.0)
    servers = [Server(database, number=number) for number in range(3)]
    with at_work(servers):
        begin(own)
        run_round(own)
        build(url)
        for number in range(SWITCHES):
            standby = NEW if number % 2 == 0 else OLD
            run_round(own, standby, limit=20)
            switched(url)
            reconnect(own)
            wait_for(partial(all_in, servers, standby))
    assert all(server.refusals >= SWITCHES for server in servers)

    found = {row[0]: row for row in rows(database, ALL)}
    stored = {memory_id: text for server in servers for memory_id, text in server.stored.items()}
    assert found.keys() == stored.keys()
    assert {memory_id: row[1] for memory_id, row in found.items()} == stored
    for _, content, embedding, model, standby_embedding, standby_model, stale, waits in found.values():
        assert waits == (embedding is None)
        require_of(OLD, content, embedding, model)
        if not stale:
            require_of(NEW, content, standby_embedding, standby_model)
    database.close()
    own.close()
    assert deadlocks(url) == 0


def require_of(space: EmbeddingSpace, content: str, embedding: HalfVector | None, model: str | None) -> None:
    if embedding is not None:
        assert model == space.model
        assert np.array_equal(embedding.to_numpy(), embedding_of(content, space).unit)


def all_in(servers: list[Server], space: EmbeddingSpace) -> bool:
    return all(server.space == space for server in servers)


def switched(url: str) -> None:
    """Switches, in as many attempts as it takes."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            switch(url, max_pending=10_000)
        except Conflict:
            assert time.monotonic() < deadline
        else:
            return


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    return new_database()
