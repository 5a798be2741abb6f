"""Clients of one user at work at the same time, each doing what a seed decides."""

import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fuzz.linearizability import Event, explain
from tests.fuzz.model import Delete, Get, Insert, Operation, Recent, Restore, Search, Stats, Update, perform

# Few memories, so that clients meet.
MEMORIES = 3


@dataclass(slots=True)
class Workload:
    """Chooses operations on few memories."""

    random: Random
    ids: Sequence[str]
    etags: dict[str, str]
    """The last etag that any client has seen of each memory: fresh or, by the time it is sent, stale."""

    def next(self) -> Operation:
        """Returns an operation."""
        memory_id = self.random.choice(self.ids)
        importance = self.random.randint(1, 10)
        etag = self.etags.get(memory_id, "") if self.random.random() < 0.6 else ""
        choices: list[tuple[Operation, int]] = [
            (Insert(memory_id, importance), 4),
            (Update(memory_id, etag, importance), 5),
            (Delete(memory_id, etag, hard=False), 3),
            (Delete(memory_id, etag, hard=True), 2),
            (Restore(memory_id, etag), 3),
            (Get(memory_id), 2),
            (Search(self.random.choice((1, 5))), 2),
            (Recent(show_deleted=self.random.random() < 0.5), 2),
            (Stats(), 1),
        ]
        operations, weights = zip(*choices, strict=True)
        chosen: Operation = self.random.choices(operations, weights)[0]
        return chosen


@dataclass(slots=True, kw_only=True)
class Interleaving:
    """One round: a new user, several clients, and a last look at everything."""

    stubs: Sequence[MemoryServiceStub]
    """One for each client."""
    seed: int
    operations: int
    """Of each client."""
    user_id: str = field(default_factory=lambda: f"user-{uuid.uuid4().hex[:12]}")
    events: list[Event] = field(default_factory=list)

    def run(self) -> list[Event]:
        """Lets the clients work; returns the order that explains what they saw.

        Raises:
            NotLinearizable: There is none.
        """
        names = Random(self.seed)  # noqa: S311 - repeatable, no secret
        ids = [str(uuid.UUID(int=names.getrandbits(128), version=4)) for _ in range(MEMORIES)]
        etags: dict[str, str] = {}
        start = threading.Barrier(len(self.stubs))

        def work(client: int) -> list[Event]:
            random = Random(f"{self.seed} {client}")  # noqa: S311 - as above
            workload = Workload(random, ids, etags)
            start.wait()
            return [self._do(client, workload) for _ in range(self.operations)]

        with ThreadPoolExecutor(len(self.stubs)) as threads:
            for events in threads.map(work, range(len(self.stubs))):
                self.events += events
        # Comes after all others, so the order has to end in what is stored.
        self.events.append(self._event(len(self.stubs), Recent(show_deleted=True)))
        return explain(self.events, {})

    def _do(self, client: int, workload: Workload) -> Event:
        event = self._event(client, workload.next())
        memory, memory_id = event.outcome.memory, getattr(event.operation, "id", "")
        if memory is not None:
            workload.etags[memory_id] = memory.etag
        return event

    def _event(self, client: int, operation: Operation) -> Event:
        stub = self.stubs[min(client, len(self.stubs) - 1)]
        begun_at = time.perf_counter()
        outcome = perform(operation, stub, self.user_id)
        return Event(client, begun_at, time.perf_counter(), operation, outcome)
