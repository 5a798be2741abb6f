"""Doing things at the same time in tests, and waiting for what the database does meanwhile."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import psycopg

T = TypeVar("T")

LIMIT_S = 30.0


def at_once(functions: Sequence[Callable[[], T]]) -> list[Future[T]]:
    """Runs all functions, started together, and returns their ended futures in the same order."""
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], T]) -> T:
        start.wait(LIMIT_S)
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return [threads.submit(run, function) for function in functions]


def wait_for(condition: Callable[[], object], *, limit_s: float = LIMIT_S) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition does not come true"
        time.sleep(0.005)


class Activity:
    """What the sessions of one database are doing, seen from a session of its own."""

    def __init__(self, observer: psycopg.Connection) -> None:
        self._observer = observer

    def wait_until_running(self, name: str) -> None:
        """Waits until a statement of this name runs."""
        wait_for(lambda: self.running(name))

    def wait_until_blocked(self, name: str) -> None:
        """Waits until a statement of this name waits for a lock."""
        wait_for(lambda: self.blocked(name))

    def blocked(self, name: str) -> int:
        """Returns how many statements of this name wait for a lock."""
        return self._count("wait_event_type = 'Lock'", name)

    def running(self, name: str) -> int:
        """Returns how many statements of this name run."""
        return self._count("state = 'active'", name)

    def _count(self, condition: str, name: str) -> int:
        of_this_name = "datname = current_database() AND starts_with(query, %s)"
        statement = f"SELECT count(*) FROM pg_stat_activity WHERE {condition} AND {of_this_name}"  # noqa: S608 - ours
        row = self._observer.execute(statement.encode(), [f"/* {name} */"]).fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        """Ends the observing session."""
        self._observer.close()

    def terminate_others(self) -> int:
        """Ends every other session of the database, as a restarting server does; returns how many."""
        row = self._observer.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
        assert row is not None
        return int(row[0])


def deadlocks(url: str) -> int:
    """Returns how many deadlocks a database has seen. Its sessions report them when they end: close the pool first."""
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as observer:
        wait_for(lambda: observer.execute(others).rowcount == 0)
        row = observer.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])
