"""Cancelling a call: it stops the call's own statements, soon, and nobody else's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from db.cancellation import Call, Canceller
from db.connection import Connection
from db.errors import CallCancelled, StatementTimeout
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.concurrency import Activity, at_once
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import rows


def sleep(conn: Connection) -> None:
    conn.query("/* test.sleep */ SELECT pg_sleep(30)", {})


def one(conn: Connection) -> int:
    row = conn.query("/* test.one */ SELECT 1", {}).fetchone()
    assert row is not None
    return int(row[0])


class Timer:
    """Cancels a call after a while, as gRPC does when a deadline passes or a caller leaves."""

    def __init__(self, call: Call, delay_s: float) -> None:
        self._thread = threading.Timer(delay_s, call.cancel)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_cancel_stops_the_statement_and_spares_the_connection(
    module_database_url: str, open_database: OpenDatabase, activity: Activity
) -> None:
    database = open_database(module_database_url, max_size=1)
    [session] = rows(database, b"SELECT pg_backend_pid()")
    call = database.call()
    with ThreadPoolExecutor(1) as threads:
        sleeping = threads.submit(database.read, call, sleep, user_id=ACROSS_USERS)
        activity.wait_until_running("test.sleep")
        cancelled_at = time.monotonic()
        call.cancel()
        assert isinstance(sleeping.exception(), CallCancelled)
    assert time.monotonic() - cancelled_at < 1
    assert activity.running("test.sleep") == 0
    assert rows(database, b"SELECT pg_backend_pid()") == [session]
    assert database.statistics().get("returns_bad", 0) == 0


def test_deadline_is_told_from_cancellation(database: Database) -> None:
    call = database.call(timeout_s=0.1)
    with Timer(call, 0.15), pytest.raises(StatementTimeout, match="the deadline passed"):
        database.read(call, sleep, user_id=ACROSS_USERS)


def test_cancelled_call_runs_nothing(database: Database) -> None:
    call = database.call()
    ran: list[Connection] = []
    call.cancel()
    with pytest.raises(CallCancelled):
        database.write(call, ran.append, user_id=ACROSS_USERS)
    assert not ran


def test_late_call_runs_nothing(database: Database) -> None:
    call = database.call(timeout_s=0.0)
    ran: list[Connection] = []
    with pytest.raises(StatementTimeout):
        database.write(call, ran.append, user_id=ACROSS_USERS)
    assert not ran
    assert call.remaining_s() == 0.0


def test_cancel_between_two_statements_stops_the_second(database: Database, user_id: str) -> None:
    call = database.call()

    def change(conn: Connection) -> None:
        with conn.transaction():
            conn.execute("INSERT INTO users (user_id, created_at) VALUES (%s, '2026-01-01')", [user_id])
            call.cancel()
            time.sleep(0.1)  # the request arrives now, and finds nothing that runs
            sleep(conn)

    with pytest.raises(CallCancelled):
        database.write(call, change, user_id=user_id)
    assert rows(database, b"SELECT FROM users WHERE user_id = %s", [user_id]) == []


def test_deadline_between_two_statements_stops_a_bulk_insert(database: Database) -> None:
    call = database.call(timeout_s=0.1)

    def change(conn: Connection) -> None:
        time.sleep(0.11)
        conn.bulk("/* test.bulk */ SELECT 1", {})

    with pytest.raises(StatementTimeout):
        database.write(call, change, user_id=ACROSS_USERS)


class CancelledWhileAttaching(Call):
    """A call whose caller leaves in the middle of `attach`, right after it looked whether one had left."""

    def ended_early(self) -> StatementTimeout | CallCancelled | None:
        """Answers as things are, and cancels before the answer can be acted upon."""
        answer = super().ended_early()
        self.cancel()
        return answer


def test_cancel_during_attach_is_not_lost(database: Database) -> None:
    canceller = Canceller()
    call = CancelledWhileAttaching(canceller)

    def attach(conn: Connection) -> None:
        call.attach(conn)
        canceller.close()  # waits for the requests under way
        assert call.detach(), "no cancel request was sent"

    database.read(database.call(), attach, user_id=ACROSS_USERS)


def test_detach_tells_whether_a_cancel_was_sent(database: Database) -> None:
    def check(conn: Connection) -> None:
        call = Call()
        call.attach(conn)
        assert not call.detach()
        call.cancel_statement()  # too late for it
        call.attach(conn)
        assert not call.detach()
        call.attach(conn)
        call.cancel_statement()
        assert call.detach()

    database.read(database.call(), check, user_id=ACROSS_USERS)


def test_cancel_reaches_what_runs_elsewhere_and_only_while_it_runs() -> None:
    call = Call()
    stops: list[str] = []
    with call.stopping(lambda: stops.append("first")):
        assert stops == []
        call.cancel()
    assert stops == ["first"]
    call.cancel()
    assert stops == ["first"]
    with call.stopping(lambda: stops.append("second")):
        assert stops == ["first", "second"], "the call was cancelled before this began"


def test_cancel_after_the_end_does_nothing(database: Database) -> None:
    call = database.call()
    assert database.read(call, one, user_id=ACROSS_USERS) == 1
    call.cancel()
    assert database.read(database.call(), one, user_id=ACROSS_USERS) == 1


def test_cancel_after_closing_does_nothing(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url)
    call = database.call()

    def close_and_cancel(_: Connection) -> None:
        database.close()
        call.cancel()

    database.read(call, close_and_cancel, user_id=ACROSS_USERS)
    assert call.ended_early() is not None


def test_random_cancels_hit_their_own_calls_only(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=3, timeout_s=10.0)

    def nap(conn: Connection) -> None:
        conn.query("/* test.nap */ SELECT pg_sleep(0.002)", {})

    def alternate(seed: int) -> list[str]:
        delays, ends = np.random.default_rng(seed), []
        for _ in range(75):
            call = database.call()
            with Timer(call, delays.uniform(0, 0.006)):
                try:
                    database.read(call, nap, user_id=ACROSS_USERS)
                    ends.append("in time")
                except CallCancelled:
                    ends.append("cancelled")
                # On a connection that a cancel may still be on its way to.
                assert database.read(database.call(), one, user_id=ACROSS_USERS) == 1
        return ends

    runs = at_once([partial(alternate, seed) for seed in range(4)])
    ends = [end for run in runs for end in run.result()]
    assert len(ends) == 300
    assert set(ends) == {"in time", "cancelled"}
    assert database.statistics().get("returns_bad", 0) == 0
