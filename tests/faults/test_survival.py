"""Some of the faults of `python -m faults`, briefly: each with a server process and callers of its own."""

from pathlib import Path

import pytest

from faults import postgres
from faults.scenarios import callers, database, server
from faults.trial import shortfalls
from faults.workload import Load
from tests.fix_database import MODEL

FEW = Load(processes=1, threads=3, users=3)


@pytest.mark.long
def test_kill_9_of_postgres(data_dir: Path) -> None:
    figures = database.killed_in(data_dir, FEW, [postgres.kill])
    assert not shortfalls(figures), figures
    assert figures["postgres_started"] == 2


@pytest.mark.long
def test_kill_9_of_a_server_process(database_url: str) -> None:
    figures = server.workers_killed_on(database_url, FEW, count=1, embedding_model=MODEL)
    assert not shortfalls(figures), figures


@pytest.mark.long
def test_callers_that_send_next_to_nothing(database_url: str) -> None:
    figures = callers.slow_on(database_url, FEW, seconds=1, embedding_model=MODEL)
    assert not shortfalls(figures), figures
