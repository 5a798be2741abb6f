"""The audit notices what it is there to notice, and nothing else."""

import copy
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from faults.audit import Discrepancies, Row, compare, discrepancies
from faults.journal import OK, Attempt, Journal, Kept, UserJournal
from faults.recovery import Cause, longest_wait_s, seconds_until_served

Rows = dict[str, dict[str, Row]]

JOURNAL = Journal(
    users={
        "ann": UserJournal(
            kept={
                "1": Kept("ann 1", "", "e"),
                "2": Kept("ann 2", "changed", "e", changes=1),
                "3": Kept("ann 3", "", "e", changes=1, deleted=True),
            },
            erased={"4"},
            unsettled_ids={"5"},
            unsettled_contents={"ann 6"},
        )
    }
)
STORED: Rows = {
    "ann": {
        "1": Row("ann 1", "", 1, deleted=False),
        "2": Row("ann 2", "changed", 2, deleted=False),
        "3": Row("ann 3", "", 2, deleted=True),
    }
}


def audited(change: Callable[[Rows], object]) -> Discrepancies:
    rows = copy.deepcopy(STORED)
    change(rows)
    return discrepancies(rows, [JOURNAL])


def put(memory_id: str, row: Row) -> Callable[[Rows], object]:
    return lambda rows: rows["ann"].__setitem__(memory_id, row)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        put("6", Row("ann 6", "", 1, deleted=False)),  # stored, although nobody was told
    ],
)
def test_what_was_told_is_found(change: Callable[[Rows], object]) -> None:
    assert audited(change) == Discrepancies([], [], [])


def test_what_was_never_answered_may_have_happened_or_not() -> None:
    journal = copy.deepcopy(JOURNAL)
    journal.users["ann"].kept["5"] = Kept("ann 5", "", "e")
    for row in (Row("ann 5", "", 1, deleted=False), Row("ann 5", "new", 2, deleted=False), None):
        rows = copy.deepcopy(STORED)
        if row is not None:
            rows["ann"]["5"] = row
        assert discrepancies(rows, [journal]) == Discrepancies([], [], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows["ann"].pop("1"),
        lambda rows: rows.pop("ann"),
        put("2", Row("ann 2", "", 1, deleted=False)),
        put("3", Row("ann 3", "", 1, deleted=False)),
        put("4", Row("ann 4", "", 1, deleted=False)),
    ],
    ids=["insert", "everything", "update", "deletion", "erasure"],
)
def test_a_lost_write_is_noticed(change: Callable[[Rows], object]) -> None:
    assert audited(change).lost


@pytest.mark.parametrize(
    "change",
    [
        put("7", Row("ann 1", "", 1, deleted=False)),
        put("7", Row("ann 7", "", 1, deleted=False)),
        put("2", Row("ann 2", "changed", 3, deleted=False)),
    ],
    ids=["insert", "out of nowhere", "update"],
)
def test_a_doubled_write_is_noticed(change: Callable[[Rows], object]) -> None:
    assert audited(change).doubled


def test_rows_of_others_are_noticed() -> None:
    assert audited(put("1", Row("bob 1", "", 1, deleted=False))).strangers
    assert discrepancies(STORED, [JOURNAL, Journal(strangers=["bob was shown 1"])]).strangers


STORE = """
INSERT INTO memory_entries (
    user_id, id, content, summary, metadata, importance, version, created_at, updated_at, deleted_at, purge_at
) VALUES (
    %(user_id)s, %(id)s, %(content)s, %(summary)s, '{}', 5, %(version)s, now(), now(),
    CASE WHEN %(deleted)s THEN now() END, CASE WHEN %(deleted)s THEN now() END
)
"""


def uuid_of(number: str) -> str:
    return f"00000000-0000-0000-0000-{number:>012}"


def test_what_is_compared_is_what_the_database_holds(database_url: str) -> None:
    journal = copy.deepcopy(JOURNAL)
    user = journal.users["ann"]
    user.kept = {uuid_of(number): kept for number, kept in user.kept.items()}
    user.erased = {uuid_of("4")}
    rows: list[dict[str, Any]] = [
        {
            "user_id": "ann",
            "id": uuid_of(number),
            "content": row.content,
            "summary": row.summary,
            "version": row.version,
            "deleted": row.deleted,
        }
        for number, row in STORED["ann"].items()
    ]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO users VALUES ('ann', now())")
        for row in rows:
            connection.execute(STORE, row)
        assert compare(database_url, [journal]) == Discrepancies([], [], [])

        user.kept[uuid_of("9")] = Kept("ann 9", "", "e")  # told, and never stored
        assert compare(database_url, [journal]).lost == [f"{uuid_of('9')}: not there"]
        del user.kept[uuid_of("9")]

        connection.execute(STORE, rows[0] | {"id": uuid_of("8"), "content": "ann 8"})  # stored, and never told
        assert [found[:36] for found in compare(database_url, [journal]).doubled] == [uuid_of("8")]
        connection.execute("DELETE FROM memory_entries")
        assert len(compare(database_url, [journal]).lost) == len(user.kept)


def attempts(*ended: tuple[float, str]) -> Journal:
    return Journal(attempts=[Attempt(ended_at - 0.5, ended_at, refusal) for ended_at, refusal in ended])


def test_recovery_counts_from_the_end_of_the_cause_to_the_last_caller_served_for_good() -> None:
    cause = Cause(began_at=10.0, ended_at=12.0, watched_until=20.0)
    quick = attempts((11.0, "UNAVAILABLE"), (12.5, OK), (13.0, OK))
    relapsed = attempts((12.2, OK), (14.0, "UNAVAILABLE"), (15.0, OK), (21.0, "UNAVAILABLE"))
    silent = attempts((9.0, OK))
    assert seconds_until_served([quick], cause) == 0.5
    assert seconds_until_served([quick, relapsed], cause) == 3.0
    assert seconds_until_served([silent], cause) == 8.0
    assert longest_wait_s([quick, relapsed], began_at=10.0, ended_at=20.0) == 0.5
