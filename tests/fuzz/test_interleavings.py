"""Clients of one user at the same time: what each of them saw is explained by some order of all that they did."""

from collections.abc import Iterator
from typing import ClassVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fix_server import ServerProcess, open_channel
from tests.fuzz.interleaving import Interleaving
from tests.fuzz.linearizability import Event, NotLinearizable, explain
from tests.fuzz.model import (
    Delete,
    Get,
    Insert,
    Operation,
    Outcome,
    Recent,
    Restore,
    Search,
    State,
    Stats,
    Stored,
    Update,
    perform,
)

CLIENTS = 4
ROUNDS = 12
OPERATIONS = 15
SEED = 1


@pytest.fixture(scope="module")
def stubs(server: ServerProcess) -> Iterator[list[MemoryServiceStub]]:
    """One for each client, each with a connection of its own."""
    channels = [open_channel(server.address) for _ in range(CLIENTS)]
    yield [MemoryServiceStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_what_clients_see_is_explained_by_some_order(stubs: list[MemoryServiceStub], number: int) -> None:
    interleaving = Interleaving(stubs=stubs, seed=SEED * 1_000 + number, operations=OPERATIONS)
    order = interleaving.run()
    assert len(order) == CLIENTS * OPERATIONS + 1


ids = st.sampled_from([f"0195d3c8-0000-4000-8000-00000000000{number}" for number in range(3)])
importances = st.integers(1, 10)
ages = st.integers(0, 3)


class OneClient(RuleBasedStateMachine):
    """Does one thing after another for a user of its own, and compares with the model."""

    stub: ClassVar[MemoryServiceStub]

    def __init__(self) -> None:
        super().__init__()
        self.user_id = f"sequential-{uuid4().hex}"
        self.state: State = {}
        self.seen: list[str] = [""]
        """Etags, the current ones among them."""

    def do(self, operation: Operation) -> None:
        """Does it, and follows with the model."""
        outcome = perform(operation, self.stub, self.user_id)
        after = operation.after(self.state, outcome)
        assert after is not None, f"{operation} of {self.state} -> {outcome}"
        self.state = after
        if outcome.memory is not None:
            self.seen.append(outcome.memory.etag)

    def etag(self, age: int) -> str:
        """Returns one of the etags seen, the last one for 0."""
        return self.seen[-1 - age % len(self.seen)]

    @rule(memory_id=ids, importance=importances)
    def insert(self, memory_id: str, importance: int) -> None:
        """Inserts."""
        self.do(Insert(memory_id, importance))

    @rule(memory_id=ids, age=ages, importance=importances)
    def update(self, memory_id: str, age: int, importance: int) -> None:
        """Updates."""
        self.do(Update(memory_id, self.etag(age), importance))

    @rule(memory_id=ids, age=ages, hard=st.booleans())
    def delete(self, memory_id: str, age: int, *, hard: bool) -> None:
        """Deletes."""
        self.do(Delete(memory_id, self.etag(age), hard=hard))

    @rule(memory_id=ids, age=ages)
    def restore(self, memory_id: str, age: int) -> None:
        """Restores."""
        self.do(Restore(memory_id, self.etag(age)))

    @rule(memory_id=ids, importance=importances, show_deleted=st.booleans())
    def read(self, memory_id: str, importance: int, *, show_deleted: bool) -> None:
        """Reads in every way."""
        for operation in (Get(memory_id), Search(importance), Recent(show_deleted=show_deleted), Stats()):
            self.do(operation)


def test_one_thing_after_another_is_as_the_model_says(stubs: list[MemoryServiceStub]) -> None:
    run_state_machine_as_test(
        type("Machine", (OneClient,), {"stub": stubs[0]}),
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


A, B = Stored("e1", 1), Stored("e2", 2)


def at(client: int, begun_at: float, ended_at: float, operation: Operation, outcome: Outcome) -> Event:
    return Event(client, begun_at, ended_at, operation, outcome)


INSERTED = at(0, 0, 1, Insert("m", 1), Outcome(memory=A))
UPDATED = at(0, 2, 5, Update("m", "e1", 2), Outcome(memory=B))


def test_what_overlaps_may_have_come_before_or_after() -> None:
    for seen in (A, B):
        meanwhile = at(1, 3, 4, Get("m"), Outcome(memory=seen))
        order = explain([INSERTED, UPDATED, meanwhile], {})
        assert order == ([INSERTED, meanwhile, UPDATED] if seen == A else [INSERTED, UPDATED, meanwhile])


@pytest.mark.parametrize(
    "impossible",
    [
        pytest.param([at(1, 6, 7, Get("m"), Outcome(memory=A))], id="a stale read"),
        pytest.param([at(1, 3, 4, Get("m"), Outcome("MEMORY_NOT_FOUND"))], id="a lost memory"),
        pytest.param([at(1, 3, 4, Update("m", "e1", 3), Outcome(memory=Stored("e3", 3)))], id="a lost update"),
        pytest.param([at(1, 2, 6, Stats(), Outcome(live_count=2))], id="a memory counted twice"),
        pytest.param([at(1, 2, 6, Search(), Outcome(memories={"m": Stored("e1", 2)}))], id="half of an update"),
        pytest.param(
            [at(1, 3, 3.5, Get("m"), Outcome(memory=B)), at(2, 4, 4.5, Get("m"), Outcome(memory=A))],
            id="time going backwards",
        ),
        pytest.param([at(1, 2, 6, Delete("m", "e9", hard=False), Outcome(memory=B))], id="an etag ignored"),
        pytest.param([at(1, 2, 6, Restore("m", ""), Outcome(memory=A))], id="a live memory restored"),
        pytest.param([at(1, 6, 7, Recent(show_deleted=True), Outcome())], id="a database that has lost it"),
    ],
)
def test_what_no_order_explains_is_found_out(impossible: list[Event]) -> None:
    with pytest.raises(NotLinearizable, match="not explained"):
        explain([INSERTED, UPDATED, *impossible], {})
