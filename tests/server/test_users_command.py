"""`memory-service users`: what it lists, what it erases, what it asks before, and what it leaves in the audit log."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from db import audit
from db.audit import AuditFilter
from db.pool import Database, PoolOptions
from db.wall import ACROSS_USERS
from memory_service import config, users_command
from memory_service.__main__ import main
from memory_service.users_command import Amount, Request
from tests.fix_database import DIMENSIONS, MODEL, NewDatabase
from tests.fix_server import COMMAND, environment
from tests.storage.sample_memories import new_memory, rows, soft_delete, store

BASICS = {"embedder": "none", "embedding_model": MODEL, "embedding_dimensions": DIMENSIONS, "log_format": "json"}


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database of the test's own."""
    return new_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A pool over it."""
    with closing(Database(url, PoolOptions(min_size=1, max_size=2))) as database:
        database.open()
        yield database


@dataclass(slots=True)
class Terminal:
    """What a command says, and what is answered when it asks."""

    answer: str | None = None
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def run(self, url: str, request: Request) -> int:
        """Runs the command in this process; returns its exit status."""
        settings = config.load(database_url=url, **BASICS)
        return users_command.run(settings, request, self.said.append, ask=self.ask)

    def ask(self, question: str) -> str:
        """Answers, or has no terminal to do so."""
        self.asked.append(question)
        if self.answer is None:
            raise EOFError
        return self.answer


def left(database: Database, user_id: str) -> int:
    return len(rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id]))


def entries(database: Database) -> list[tuple[str, str | None, str | None, int]]:
    """Returns the audit log, oldest first: method, user, code, memories."""
    page = database.read(
        database.call(),
        lambda conn: audit.read_page(conn, AuditFilter(), after=None, page_size=100, max_memory_ids=1_000),
        user_id=ACROSS_USERS,
    )
    assert all(entry.subject.startswith("cli:") and len(entry.subject) > len("cli:") for entry in page.entries)
    return [(entry.method, entry.user_id, entry.code, entry.memory_count) for entry in page.entries[::-1]]


def test_users_are_listed_with_their_sizes(url: str, database: Database) -> None:
    terminal = Terminal()
    assert terminal.run(url, Request(action="list")) == 0
    assert terminal.said == ["no users"]
    for number in range(3):
        memories = [new_memory(content="x" * 1_000) for _ in range(number + 1)]
        store(database, f"user-{number}", *memories)
        soft_delete(database, f"user-{number}", memories[0].id)

    terminal = Terminal()
    assert terminal.run(url, Request(action="list", limit=2)) == 0
    table, more = terminal.said
    heading, first, second = (line.split() for line in table.splitlines())
    assert heading[:4] == ["USER", "LIVE", "DELETED", "SIZE"]
    assert first[:5] == ["user-0", "0", "1", "1018", "B"]
    assert second[:5] == ["user-1", "1", "1", "2.0", "KB"]
    assert "--after user-1" in more

    terminal = Terminal()
    assert terminal.run(url, Request(action="list", after="user-1")) == 0
    assert [line.split()[0] for line in terminal.said[0].splitlines()] == ["USER", "user-2"]


@pytest.mark.parametrize("answer", ["", "Ada", None])
def test_nothing_is_erased_without_the_user_id_once_more(url: str, database: Database, answer: str | None) -> None:
    store(database, "ada", new_memory())
    terminal = Terminal(answer)
    assert terminal.run(url, Request(action="erase", user_id="ada")) == 1
    assert len(terminal.asked) == 1
    assert left(database, "ada") == 1
    assert entries(database) == []


def test_confirmed_the_user_is_erased_and_written_down(url: str, database: Database) -> None:
    store(database, "ada", new_memory(conversation_id="c"), new_memory())
    store(database, "ada-2", new_memory())
    terminal = Terminal("ada")
    assert terminal.run(url, Request(action="erase", user_id="ada")) == 0
    assert terminal.said[0] == "ada has 2 memories, 1 conversations, 0 remembered requests"
    assert terminal.said[1].startswith("erased 2 memories")
    assert (left(database, "ada"), left(database, "ada-2")) == (0, 1)
    assert entries(database) == [("EraseUser", "ada", None, 0), ("EraseUser", "ada", "OK", 2)]


def test_a_dry_run_counts_and_neither_asks_nor_erases(url: str, database: Database) -> None:
    store(database, "ada", new_memory())
    terminal = Terminal("ada")
    assert terminal.run(url, Request(action="erase", user_id="ada", dry_run=True)) == 0
    assert terminal.said == ["ada has 1 memories, 0 conversations, 0 remembered requests"]
    assert (left(database, "ada"), terminal.asked, entries(database)) == (1, [], [])


def test_a_quota_is_shown_and_set(url: str, database: Database) -> None:
    def say(*, memories: Amount | None = None, bytes_: Amount | None = None) -> str:
        terminal = Terminal()
        request = Request(action="quota", user_id="ada", memories=memories, bytes=bytes_)
        assert terminal.run(url, request) == 0
        return terminal.said[0]

    assert say() == "ada may store any number of memories (default) and any number of bytes (default)"
    assert say(memories=Amount(1_000)) == "ada may store 1,000 memories and any number of bytes (default)"
    assert say(bytes_=Amount(0)) == "ada may store 1,000 memories and any number of bytes"
    assert say() == "ada may store 1,000 memories and any number of bytes"
    assert rows(database, b"SELECT * FROM user_quotas") == [("ada", 1_000, 0)]
    say(memories=Amount(None), bytes_=Amount(None))
    assert rows(database, b"SELECT * FROM user_quotas") == []
    assert entries(database) == [("SetUserQuota", "ada", code, 0) for code in (None, "OK") * 3]


@pytest.mark.parametrize("amount", ["0", "-1", "many", "1.5", "9" * 19, ""])
def test_a_quota_is_a_number(capsys: pytest.CaptureFixture[str], amount: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["users", "quota", "ada", "--memories", amount])
    assert ended.value.code == 2
    assert "neither a number" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["quota", "erase"])
@pytest.mark.parametrize("user_id", ["", "x" * 256], ids=len)
def test_a_user_has_an_id(capsys: pytest.CaptureFixture[str], action: str, user_id: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["users", action, user_id])
    assert ended.value.code == 2
    assert "1 to 255 characters" in capsys.readouterr().err


def test_as_a_command(url: str, database: Database) -> None:
    store(database, "ada", new_memory())
    run = subprocess.run(
        [*COMMAND, "users", "erase", "ada", "--yes"],
        env=environment(database_url=url, **BASICS),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "erased 1 memories" in run.stdout
    assert left(database, "ada") == 0
