"""Nothing that goes wrong in a trial is passed over: each promise, broken, is told."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from faults.scenario import Figures
from faults.service import Service
from faults.trial import FILES_MORE, RECOVERY_S, THREADS_MORE, Trial, shortfalls
from faults.workload import Load
from tests.fix_database import MODEL

KEPT: Figures = {
    "lost": 0,
    "doubled": 0,
    "strangers": 0,
    "wrong_reads": 0,
    "unexpected": {},
    "internal_errors": 0,
    "not_met": "",
    "recovery_s": RECOVERY_S,
    "threads": {"before": 50, "under_load": 90, "after": 50 + THREADS_MORE},
    "files": {"before": 20, "under_load": 90, "after": 20 + FILES_MORE},
    "pool": {"size": 4, "available": 3, "requests_waiting": 0},
    "broken_promises": [],
}


def test_promises_kept_are_no_shortfall() -> None:
    assert shortfalls(KEPT) == []
    assert shortfalls(KEPT | {"pool": {"size": 8, "available": 8}}) == []


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"lost": 1}, "lost: 1"),
        ({"doubled": 2}, "doubled: 2"),
        ({"strangers": 1}, "strangers: 1"),
        ({"wrong_reads": 1}, "wrong reads: 1"),
        ({"unexpected": {"INTERNAL": 1}}, "unexpected: {'INTERNAL': 1}"),
        ({"internal_errors": 1}, "internal errors: 1"),
        ({"not_met": "UNAVAILABLE (gRPC)"}, "no harm was done: nobody was refused with UNAVAILABLE (gRPC)"),
        ({"recovery_s": RECOVERY_S + 0.1}, "recovery took 10.1 s"),
        ({"threads": {"before": 50, "after": 57}}, "threads: 57 after, 50 before"),
        ({"files": {"before": 20, "after": 33}}, "files: 33 after, 20 before"),
        ({"pool": {"size": 4, "available": 4, "requests_waiting": 1}}, "the pool is not idle"),
        ({"pool": {"size": 4, "available": 2, "requests_waiting": 0}}, "the pool is not idle"),
        ({"pool": {"size": 0, "available": 0, "requests_waiting": 0}}, "the pool is not idle"),
        ({"pool": {"size": 8, "available": 6}}, "the pool is not idle"),
        ({"broken_promises": ["exit status 1"]}, "broken promises: ['exit status 1']"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_promise_can_be_broken(broken: dict[str, Any], told: str) -> None:
    [found] = shortfalls(KEPT | broken)
    assert found.startswith(told)


# What a service that loses, repeats or confuses writes would leave behind.
LOSE = "DELETE FROM memory_entries WHERE user_id = %s AND deleted_at IS NULL"
REPEAT = """
INSERT INTO memory_entries (
    user_id, id, content, summary, metadata, embedding, embedding_norm, embedding_model, importance, version,
    created_at, updated_at
) SELECT user_id, gen_random_uuid(), content, summary, metadata, embedding, embedding_norm, embedding_model, importance,
    version, created_at, updated_at
FROM memory_entries WHERE user_id = %s AND deleted_at IS NULL
"""
CONFUSE = "UPDATE memory_entries SET content = 'somebody ' || content WHERE user_id = %s AND deleted_at IS NULL"
FORGET = "UPDATE memory_entries SET summary = 'before the update' WHERE user_id = %s AND summary <> ''"

USER_OF_MANY = """
SELECT user_id FROM memory_entries WHERE deleted_at IS NULL GROUP BY user_id
ORDER BY count(*) FILTER (WHERE summary <> '') DESC, count(*) DESC LIMIT 1
"""


def tampered(url: str, change: Callable[[psycopg.Connection, str], object]) -> Figures:
    """Returns the findings of a trial in which one user's memories are changed behind the service's back."""
    with (
        Service(url, embedding_model=MODEL) as service,
        Trial(service, Load(processes=1, threads=2, users=2), refusal="UNAVAILABLE (gRPC)") as trial,
    ):
        with trial.cause(), psycopg.connect(url) as connection:
            row = connection.execute(USER_OF_MANY.encode()).fetchone()
            assert row is not None
            change(connection, row[0])
        return trial.findings(url)


@pytest.mark.long
@pytest.mark.parametrize(
    ("statement", "noticed"),
    [
        (LOSE, {"lost"}),
        (REPEAT, {"doubled", "wrong_reads"}),
        (CONFUSE, {"strangers"}),
        (FORGET, {"wrong_reads"}),
    ],
    ids=["lost", "doubled", "strangers", "forgotten"],
)
def test_what_a_bad_service_would_do_is_noticed(database_url: str, statement: str, noticed: set[str]) -> None:
    figures = tampered(database_url, lambda connection, user_id: connection.execute(statement.encode(), [user_id]))
    assert {name for name in noticed if figures[name]} == noticed, figures
    assert {shortfall.split(":")[0] for shortfall in shortfalls(figures)} >= {
        *(name.replace("_", " ") for name in noticed),
        "no harm was done",
    }
