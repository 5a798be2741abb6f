"""The audit log: entries written and read back in pages, in partitions that come and go by the month."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from psycopg.rows import tuple_row

from db import audit, audit_buffer
from db.audit import AuditEntry, AuditFilter, AuditPage, AuditPosition
from db.audit_buffer import AuditBuffer, AuditOutcome
from db.errors import DatabaseError
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.housekeeping import Housekeeping
from tests.fix_database import NewDatabase
from tests.storage.conftest import OpenDatabase

NOW = datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC)


def entry(**changes: object) -> AuditEntry:
    fields: dict[str, object] = {
        "at": NOW,
        "id": uuid4(),
        "subject": "key:1",
        "method": "InsertVector",
        "user_id": "u",
        "code": "OK",
    }
    return AuditEntry(**(fields | changes))  # type: ignore[arg-type]  # fields by name


def write(database: Database, *entries: AuditEntry) -> None:
    database.write(database.call(), lambda conn: audit.write(conn, entries), user_id=ACROSS_USERS)


def page(
    database: Database,
    which: AuditFilter,
    *,
    after: AuditPosition | None = None,
    page_size: int = 100,
    max_memory_ids: int = 1_000,
) -> AuditPage:
    return database.read(
        database.call(),
        lambda conn: audit.read_page(conn, which, after=after, page_size=page_size, max_memory_ids=max_memory_ids),
        user_id=ACROSS_USERS,
    )


def pages(database: Database, which: AuditFilter, **options: int) -> Iterator[list[AuditEntry]]:
    after: AuditPosition | None = None
    while True:
        found = page(database, which, after=after, **options)
        yield found.entries
        if found.end is None:
            return
        after = found.end


def test_entries_are_read_as_they_were_written(database: Database, user_id: str) -> None:
    full = entry(
        user_id=user_id,
        memory_ids=(uuid4(), uuid4()),
        memory_count=2,
        key_id="k",
        request_id="r-1",
        peer="ipv4:192.0.2.7:1",
        code="NOT_FOUND",
        reason="MEMORY_NOT_FOUND",
    )
    bare = entry(user_id=user_id, code=None, at=NOW + timedelta(seconds=1))
    write(database, full, bare)
    write(database, full)  # tried again after a connection was lost
    assert page(database, AuditFilter(user_id=user_id)) == AuditPage([bare, full], None)


def test_pages_are_newest_first_and_complete_however_many_share_a_moment(database: Database, user_id: str) -> None:
    entries = [entry(user_id=user_id, at=NOW + timedelta(microseconds=number // 3)) for number in range(10)]
    write(database, *entries)
    for page_size in (1, 3, 7, 10, 11):
        found = [each for some in pages(database, AuditFilter(user_id=user_id), page_size=page_size) for each in some]
        assert sorted(found, key=lambda each: each.id) == sorted(entries, key=lambda each: each.id)
        assert all((b.at, b.id) < (a.at, a.id) for a, b in pairwise(found))


def test_pages_end_early_where_entries_name_many_memories(database: Database, user_id: str) -> None:
    named = [(), tuple(UUID(int=n) for n in range(8)), (UUID(int=1),), tuple(UUID(int=n) for n in range(20)), ()]
    write(
        database,
        *(entry(user_id=user_id, memory_ids=ids, at=NOW - timedelta(seconds=n)) for n, ids in enumerate(named)),
    )
    which = AuditFilter(user_id=user_id)
    found = [[len(each.memory_ids) for each in some] for some in pages(database, which, max_memory_ids=9)]
    assert found == [[0, 8, 1], [20], [0]]


def test_conditions_are_combined(database: Database, user_id: str) -> None:
    hour = timedelta(hours=1)
    write(
        database,
        entry(user_id=user_id, subject="key:a", method="InsertVector", at=NOW),
        entry(user_id=user_id, subject="key:a", method="DeleteVector", at=NOW + hour),
        entry(user_id=user_id, subject="key:b", method="DeleteVector", at=NOW + 2 * hour),
        entry(user_id=f"{user_id}2", subject="key:b", method="DeleteVector", at=NOW + 3 * hour),
    )

    def hours(**conditions: object) -> list[int]:
        found = page(database, AuditFilter(**({"user_id": user_id} | conditions)))  # type: ignore[arg-type]  # by name
        return [(each.at - NOW) // hour for each in found.entries]

    assert hours() == [2, 1, 0]
    assert hours(subject="key:a") == [1, 0]
    assert hours(subject="key:a", method="DeleteVector") == [1]
    assert hours(since=NOW + hour) == [2, 1]
    assert hours(until=NOW + hour) == [0]
    assert hours(since=NOW + hour, until=NOW + 2 * hour) == [1]
    assert hours(user_id=None, subject="key:b", since=NOW + 2 * hour, until=NOW + 4 * hour) == [3, 2]


def partitions(url: str) -> dict[str, int]:
    """Returns how many entries each partition holds."""
    with psycopg.connect(url, row_factory=tuple_row) as connection:
        names = connection.execute(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'audit_log'::regclass"
        ).fetchall()
        counts = {}
        for (name,) in names:
            row = connection.execute(f"SELECT count(*) FROM {name}").fetchone()  # noqa: S608 - a name of ours
            assert row is not None
            counts[name.removeprefix("audit_log_")] = row[0]
    return counts


def turn(database: Database, now: datetime, *, days: float = 90) -> None:
    """Does what housekeeping does of the log at a time."""
    Housekeeping(database, clock=lambda: now, interval_s=3_600, audit_retention=timedelta(days=days)).purge()


def test_months_are_made_ahead_and_dropped_whole(new_database: NewDatabase, open_database: OpenDatabase) -> None:
    url = new_database()
    database = open_database(url)
    assert partitions(url) == {"default": 0}
    turn(database, NOW)
    assert partitions(url) == {"default": 0, "2026_05": 0, "2026_06": 0, "2026_07": 0}
    months = [datetime(2026, month, 28, tzinfo=UTC) for month in (5, 6, 7)]
    write(database, *(entry(at=at) for at in months))
    first, last = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 30, 23, 59, 59, 999_999, tzinfo=UTC)
    write(database, entry(at=first), entry(at=last))
    assert partitions(url) == {"default": 0, "2026_05": 1, "2026_06": 3, "2026_07": 1}

    turn(database, datetime(2026, 8, 28, tzinfo=UTC), days=89)  # kept from 31 May on: a day of that month
    assert partitions(url)["2026_05"] == 1
    with structlog.testing.capture_logs() as events:
        turn(database, datetime(2026, 8, 30, tzinfo=UTC), days=90)
    assert partitions(url) == {"default": 0, "2026_06": 3, "2026_07": 1, "2026_08": 0, "2026_09": 0, "2026_10": 0}
    assert next(event for event in events if event["event"] == "audit_log_turned")["partitions_dropped"] == 1


def test_entries_are_taken_when_nobody_made_a_month(new_database: NewDatabase, open_database: OpenDatabase) -> None:
    url = new_database()
    database = open_database(url)
    write(database, entry(at=NOW), entry(at=NOW + timedelta(days=31)))
    assert partitions(url) == {"default": 2}

    turn(database, NOW)
    # Months with entries in the default partition stay there; those to come have their own.
    assert partitions(url) == {"default": 2, "2026_07": 0}
    write(database, entry(at=NOW), entry(at=NOW + timedelta(days=62)))
    assert partitions(url) == {"default": 3, "2026_07": 1}
    assert len(page(database, AuditFilter()).entries) == 4

    turn(database, NOW + timedelta(days=120), days=90)  # the youngest in the default partition is 89 days old
    assert partitions(url)["default"] == 3
    turn(database, NOW + timedelta(days=122), days=90)
    assert partitions(url)["default"] == 0
    assert len(page(database, AuditFilter()).entries) == 1


def test_processes_that_make_the_same_months_do_not_collide(
    new_database: NewDatabase, open_database: OpenDatabase
) -> None:
    url = new_database()
    databases = [open_database(url) for _ in range(4)]
    barrier, failures = threading.Barrier(4), []

    def start(database: Database) -> None:
        barrier.wait(10)
        try:
            turn(database, NOW)
        except Exception as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    threads = [threading.Thread(target=start, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert partitions(url) == {"default": 0, "2026_05": 0, "2026_06": 0, "2026_07": 0}


def test_a_month_is_the_month_of_utc_whatever_the_session_says(
    new_database: NewDatabase, open_database: OpenDatabase
) -> None:
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET TimeZone = 'Pacific/Kiritimati'")  # 14 hours ahead
        connection.execute("SELECT audit_log_prepare('2026-05-31 23:00:00+00', 0)")
    write(open_database(url), entry(at=datetime(2026, 5, 31, 23, 59, tzinfo=UTC)))
    assert partitions(url) == {"default": 0, "2026_05": 1}


def test_the_buffer_writes_by_itself_and_when_it_is_closed(database: Database, user_id: str) -> None:
    buffer = AuditBuffer(database)
    buffer.start()
    buffer.add(entry(user_id=user_id))
    which = AuditFilter(user_id=user_id)
    deadline = threading.Event()
    for _ in range(100):
        if page(database, which).entries:
            break
        deadline.wait(0.05)
    assert len(page(database, which).entries) == 1
    buffer.add(entry(user_id=user_id))
    buffer.close()
    assert len(page(database, which).entries) == 2


def test_entries_of_many_batches_are_all_written(
    database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_buffer, "FLUSH_ENTRIES", 3)
    monkeypatch.setattr(audit_buffer, "FLUSH_MEMORY_IDS", 4)
    buffer = AuditBuffer(database)
    for count in (0, 9, 1, 1, 1, 1, 0, 5, 0):
        buffer.add(entry(user_id=user_id, memory_ids=tuple(uuid4() for _ in range(count))))
    buffer.flush()
    found = page(database, AuditFilter(user_id=user_id)).entries
    assert sorted(len(each.memory_ids) for each in found) == [0, 0, 0, 1, 1, 1, 1, 5, 9]


def test_entries_wait_while_they_cannot_be_written_and_what_is_too_much_is_counted(
    new_database: NewDatabase, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_buffer, "MAX_ENTRIES", 3)
    url = new_database()
    database = open_database(url, statement_timeout_s=0.1)
    outcomes: list[tuple[AuditOutcome, int]] = []
    buffer = AuditBuffer(database, count=lambda outcome, count: outcomes.append((outcome, count)))
    entries = [entry() for _ in range(5)]
    with psycopg.connect(url) as locking:
        locking.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE")
        for each in entries:
            buffer.add(each)
        with structlog.testing.capture_logs() as events, pytest.raises(DatabaseError):
            buffer.flush()
    assert [event["count"] for event in events if event["event"] == "audit_entries_dropped"] == [2]
    assert outcomes == [(AuditOutcome.DROPPED, 2)]

    buffer.flush()
    assert {each.id for each in page(database, AuditFilter()).entries} == {each.id for each in entries[:3]}
    assert outcomes[1:] == [(AuditOutcome.WRITTEN, 3)]


def test_entries_that_are_not_made_are_counted(database: Database) -> None:
    outcomes: list[tuple[AuditOutcome, int]] = []
    buffer = AuditBuffer(database, count=lambda outcome, count: outcomes.append((outcome, count)))
    for _ in range(3):
        buffer.leave_out()
    with structlog.testing.capture_logs() as events:
        buffer.flush()
        buffer.flush()
    assert outcomes[:1] == [(AuditOutcome.LEFT_OUT, 3)]
    assert {outcome for outcome, _ in outcomes[1:]} <= {AuditOutcome.WRITTEN}
    assert [(event["event"], event["count"]) for event in events] == [("audit_entries_left_out", 3)]


def test_an_entry_that_cannot_be_stored_does_not_hold_up_the_others(database: Database, user_id: str) -> None:
    outcomes: list[tuple[AuditOutcome, int]] = []
    buffer = AuditBuffer(database, count=lambda outcome, count: outcomes.append((outcome, count)))
    for subject in ("key:1", "a\0b", "key:2"):
        buffer.add(entry(user_id=user_id, subject=subject))
    with structlog.testing.capture_logs() as events:
        buffer.flush()
    assert {each.subject for each in page(database, AuditFilter(user_id=user_id)).entries} == {"key:1", "key:2"}
    assert outcomes == [(AuditOutcome.WRITTEN, 1), (AuditOutcome.REFUSED, 1), (AuditOutcome.WRITTEN, 1)]
    assert [event["event"] for event in events] == ["audit_entry_refused"]
