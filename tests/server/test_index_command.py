"""`memory-service index`: what it lists, builds, refuses and leaves behind."""

import io
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest

from db import ann_indexes, ann_session
from db.ann_catalog import GLOBAL_NAME, BuildProgress, name_of, progress, wanted_users
from db.ann_session import AnnLock, AnnSession
from db.errors import DatabaseUnavailable, SchemaMismatch
from db.pool import Database, PoolOptions
from db.schema import EmbeddingSpace
from memory_service import config, index_command
from memory_service.__main__ import main
from memory_service.index_command import Request
from memory_service.index_progress import Bar, Log, follow
from memory_service.text_table import printable, size, table
from tests.fix_database import MODEL, NewDatabase
from tests.fix_server import COMMAND, environment, start_process
from tests.storage import clustered
from tests.storage.clustered import DIMENSIONS, blueprint, indexes_of
from tests.storage.concurrency import wait_for
from tests.storage.reembedding_calls import move, switch

BASICS = {
    "embedder": "none",
    "embedding_model": MODEL,
    "embedding_dimensions": DIMENSIONS,
    "log_format": "json",
    "ann_min_rows": 200,
    "ann_drop_rows": 100,
    "hnsw_ef_construction": 64,
}
LIMIT_S = 60
LARGE, QUOTED = name_of("large"), name_of("it's")


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database with users of 300, 250, 150 and 50 memories."""
    url = new_database(dimensions=DIMENSIONS)
    for seed, (user_id, count) in enumerate({"large": 300, "it's": 250, "middling": 150, "small": 50}.items()):
        clustered.store(url, user_id, clustered.clustered(count, seed=seed))
    return url


def run(url: str, action: Any, **request: Any) -> tuple[int, str]:
    """Runs the command in this process; returns its exit status and what it said."""
    settings = {**BASICS, **request.pop("settings", {}), "database_url": url}
    said: list[str] = []
    status = index_command.run(config.load(**settings), Request(action=action, **request), said.append)
    return status, "\n".join(said)


def run_process(*arguments: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Runs `memory-service index` to its end."""
    return subprocess.run(
        [*COMMAND, "index", *arguments],
        env=environment(**{**BASICS, **settings}),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def states(url: str) -> dict[str, str]:
    """Returns the states of the indexes by name."""
    return {name: index.state.value for name, index in indexes_of(url).items()}


def wanted(url: str) -> list[str]:
    with AnnSession(url) as session:
        return session.query(wanted_users)


def test_an_empty_list_says_how_to_earn_an_index(url: str) -> None:
    assert run(url, "list") == (
        0,
        "no approximate indexes; a user earns one with 200 memories (MEMORY_ANN_MIN_ROWS), once they are searched",
    )
    status, said = run(url, "list", settings={"ann_index": "off"})
    assert status == 0
    assert "MEMORY_ANN_INDEX is off" in said


def test_the_dimensions_are_the_database_s_where_a_move_is_newer_than_the_settings(new_database: NewDatabase) -> None:
    url, none_for_users = new_database(), "embeddings have more than 4,000 dimensions"
    with closing(Database(url, PoolOptions(min_size=1, max_size=1))) as database:
        database.open()
        move(database, url, EmbeddingSpace("of-many-dimensions", 4_100))
    settings = {"embedding_dimensions": 8}
    assert none_for_users in run(url, "list", settings=settings)[1]
    status, said = run(url, "create", every_user=True, settings=settings)
    assert (status, none_for_users in said) == (1, True)
    assert run(url, "create", user_id="large", settings=settings)[0] == 1

    switch(url)
    assert "a user earns one" in run(url, "list", settings={"embedding_dimensions": 4_100})[1]


def test_the_list_is_an_aligned_table(url: str) -> None:
    run(url, "create", user_id="large")
    clustered.wish(url, "it's")
    with AnnSession(url) as session:
        ann_indexes.create(session, blueprint("stranger"))
    status, said = run(url, "list")
    lines = said.splitlines()
    assert status == 0
    assert lines[0].split() == ["USER", "INDEX", "METHOD", "STATE", "SIZE", "SCANS", "MEMORIES"]
    assert [line.split()[0] for line in lines[1:]] == ["large", "(nobody)", "it's"]
    assert lines[1].split()[1:4] == [LARGE, "hnsw", "ready"]
    assert lines[1].endswith("300")
    assert lines[3].split()[1:] == [QUOTED, "wanted", "250"]
    column = lines[0].index("INDEX")
    assert all(line[column:].startswith("memory_ann_") for line in lines[1:])


def test_create_builds_what_a_user_has_earned(url: str) -> None:
    status, said = run(url, "create", user_id="it's")
    assert status == 0
    assert said.startswith(f'{QUOTED} of user "it\'s": built, 250 memories in ')
    assert states(url) == {QUOTED: "ready"}
    assert wanted(url) == ["it's"]
    assert run(url, "create", user_id="it's")[1].endswith("there already, nothing to do")


def test_what_is_changed_is_written_down(url: str) -> None:
    run(url, "create", user_id="large", dry_run=True)
    run(url, "list")
    run(url, "create", user_id="large")
    run(url, "create", user_id="nobody")
    run(url, "drop", every_user=True)
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT method, user_id, code FROM audit_log ORDER BY at").fetchall()
    assert found == [
        ("index create", "large", None),
        ("index create", "large", "OK"),
        ("index create", "nobody", None),
        ("index create", "nobody", "ABORTED"),
        ("index drop", None, None),
        ("index drop", None, "OK"),
    ]


def test_create_keeps_to_what_maintenance_would_keep(url: str) -> None:
    assert run(url, "create", user_id="middling")[0] == 0, "between both thresholds, it is not dropped"
    status, said = run(url, "create", user_id="small")
    assert status == 1
    assert "refused: 50 memories; maintenance drops it below 100 (MEMORY_ANN_DROP_ROWS)" in said
    status, said = run(url, "create", user_id="large", settings={"ann_max_indexes": 1})
    assert status == 1
    assert "refused: MEMORY_ANN_MAX_INDEXES is 1, and as many users have one" in said
    status, said = run(url, "create", user_id="large", settings={"ann_index": "off"})
    assert status == 1
    assert "refused: users get no ANN indexes" in said
    status, said = run(url, "create", every_user=True, settings={"ann_index": "off"})
    assert status == 1
    assert said.startswith("refused: users get no ANN indexes")
    assert states(url) == {name_of("middling"): "ready"}


def test_create_for_all_takes_those_who_have_earned_one(url: str) -> None:
    status, said = run(url, "create", every_user=True)
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()] == [LARGE, QUOTED]
    assert set(states(url)) == {LARGE, QUOTED}


def test_create_for_all_says_for_whom_there_is_no_room(url: str) -> None:
    status, said = run(url, "create", every_user=True, settings={"ann_max_indexes": 1})
    assert status == 0
    assert said.splitlines()[0] == "no room for the 1 smallest: MEMORY_ANN_MAX_INDEXES is 1"
    assert set(states(url)) == {LARGE}


def test_a_dry_run_changes_nothing(url: str) -> None:
    status, said = run(url, "create", every_user=True, dry_run=True)
    assert status == 0
    assert said == "\n".join(
        [
            f"{LARGE} of user 'large': would be built, hnsw of 300 memories",
            f'{QUOTED} of user "it\'s": would be built, hnsw of 250 memories',
        ]
    )
    assert (states(url), wanted(url)) == ({}, [])
    run(url, "create", user_id="large")
    for action in ("rebuild", "drop"):
        assert "would be" in run(url, action, every_user=True, dry_run=True)[1]
    assert states(url) == {LARGE: "ready"}


def test_drop(url: str) -> None:
    run(url, "create", every_user=True)
    status, said = run(url, "drop", user_id="large")
    assert status == 0
    assert said == (
        f"{LARGE} of user 'large': dropped; maintenance builds it again once the user is searched, having 300 memories"
    )
    assert set(states(url)) == {QUOTED}
    with AnnSession(url) as session:
        ann_indexes.create(session, blueprint("stranger"))
        ann_indexes.create(session, blueprint("it's", name=QUOTED + "_ccnew"))
    assert run(url, "drop", every_user=True, settings={"ann_index": "off"})[0] == 0
    assert (states(url), wanted(url)) == ({}, [])
    assert run(url, "drop", every_user=True) == (0, "nothing to do")


def test_rebuild_takes_the_settings_of_today(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_indexes, "SETTLE_S", 0)
    run(url, "create", every_user=True)
    assert run(url, "rebuild", user_id="large", settings={"hnsw_m": 8})[0] == 0
    assert run(url, "rebuild", user_id="it's", settings={"ann_index": "ivfflat"})[0] == 0
    found = indexes_of(url)
    assert found[LARGE].options["m"] == 8
    assert found[QUOTED].method == "ivfflat"
    assert run(url, "rebuild", every_user=True)[0] == 0
    assert {(index.method, index.options["m"]) for index in indexes_of(url).values()} == {("hnsw", 16)}
    status, said = run(url, "rebuild", user_id="middling")
    assert status == 1
    assert said.endswith("refused: there is none to build anew")


def test_the_index_across_users(url: str) -> None:
    status, said = run(url, "create", across_users=True)
    assert (status, said) == (1, f"{GLOBAL_NAME} across users: refused: MEMORY_GLOBAL_SEARCH is off")
    on = {"global_search": True}
    assert run(url, "create", across_users=True, settings=on)[0] == 0
    assert indexes_of(url)[GLOBAL_NAME].entries == 750
    assert "(all users)" in run(url, "list")[1]
    assert run(url, "rebuild", across_users=True, every_user=True, settings=on)[0] == 0
    assert run(url, "drop", across_users=True, settings=on)[1].endswith("while MEMORY_GLOBAL_SEARCH is on")
    assert run(url, "drop", across_users=True)[1].endswith("there is none, nothing to do")
    assert states(url) == {}


def test_it_waits_for_maintenance_to_finish(url: str) -> None:
    outcome: list[tuple[int, str]] = []
    with AnnSession(url) as maintenance:
        assert maintenance.try_lock(AnnLock.WORK)
        command = threading.Thread(target=lambda: outcome.append(run(url, "create", user_id="large")))
        command.start()
        assert run(url, "create", user_id="large", dry_run=True)[0] == 0, "a dry run does not wait"
        assert states(url) == {}
    command.join()
    assert outcome[0][0] == 0
    assert states(url) == {LARGE: "ready"}


def test_a_failed_build_is_said_and_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_session, "LOCK_TIMEOUT_S", 1)
    with psycopg.connect(url) as locker:
        locker.execute("LOCK TABLE memory_entries IN SHARE MODE")
        status, said = run(url, "create", user_id="large")
    assert status == 1
    assert said.endswith("of user 'large': failed: other transactions were in the way for 1 s")
    assert states(url) == {}


def test_an_unmigrated_database_is_refused(new_database: NewDatabase) -> None:
    with pytest.raises(SchemaMismatch, match="memory-service migrate"):
        run(new_database(dimensions=None), "list")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["create"], ["drop", "--user", "a", "--all"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["index", *arguments])
    assert ended.value.code == 2
    assert "usage: memory-service index" in capsys.readouterr().err


def test_the_command_line(url: str) -> None:
    result = run_process("create", "--all", database_url=url)
    assert result.returncode == 0
    assert result.stdout.count(": built, ") == 2


def test_an_unreachable_database_is_an_error() -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot connect to the database"):
        run("postgresql://127.0.0.1:1/none", "list")


def test_ctrl_c_ends_a_build_and_clears_up(url: str) -> None:
    clustered.store(url, "huge", clustered.clustered(1_500))
    settings = {**BASICS, "database_url": url, "hnsw_ef_construction": 1_000}
    command = start_process("index", "create", "--user", "huge", **settings)
    with AnnSession(url) as onlooker:
        wait_for(lambda: (seen := onlooker.query(progress)) is not None and seen.done > 0)
    command.send_signal(signal.SIGINT)
    _, stderr = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 130
    assert "Traceback" not in stderr
    assert states(url) == {}


class Terminal(io.StringIO):
    """What a terminal was sent."""

    def isatty(self) -> bool:
        """Says that it is one."""
        return True


def test_the_bar_writes_over_itself() -> None:
    terminal = Terminal()
    bar = Bar(terminal, "memory_ann_x")
    bar.show(BuildProgress("building index: loading tuples", 50, 200))
    bar.show(BuildProgress("waiting", 0, 0))
    bar.end()
    first, second, blank = terminal.getvalue().split("\r")[1:4]
    assert first == "memory_ann_x  building index: loading tuples  [########......................]  25%"
    assert second.rstrip() == "memory_ann_x  waiting"
    assert len(second) == len(first)
    assert not blank.strip()


def test_the_log_has_a_line_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    view = Log("memory_ann_x")
    for done in (0, 50, 100):
        view.show(BuildProgress("loading", done, 200))
    view.show(BuildProgress("waiting", 0, 0))
    lines = capsys.readouterr().out.splitlines()
    assert ["percent=0" in lines[0], "phase=waiting" in lines[1], len(lines)] == [True, True, 2]


def test_followed_work_raises_what_it_raises() -> None:
    def fail() -> None:
        raise DatabaseUnavailable("gone")

    with pytest.raises(DatabaseUnavailable):
        follow(fail, look=lambda: None, view=Log("x"), cancel=lambda: None)


def test_an_interrupted_look_cancels_the_work() -> None:
    cancelled = threading.Event()

    def interrupt() -> BuildProgress:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(lambda: _wait(cancelled.wait), look=interrupt, view=Log("x"), cancel=cancelled.set)
    assert cancelled.is_set()


def _wait(wait: Callable[[float], bool]) -> None:
    assert wait(30)


def test_tables_and_quantities() -> None:
    assert table(("A", "N"), [("x", "1"), ("longer", "1,000")], right=frozenset({"N"})) == (
        "A           N\nx           1\nlonger  1,000"
    )
    assert [size(count) for count in (0, 1_023, 1_024, 1_536, 5 << 20, 3 << 30, 2 << 40, 5_000 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KB",
        "1.5 KB",
        "5.0 MB",
        "3.0 GB",
        "2.0 TB",
        "5000.0 TB",
    ]
    assert [printable(text) for text in ("anna", "it's", "a\nb", " a", "жанна")] == [
        "anna",
        "it's",
        "'a\\nb'",
        "' a'",
        "жанна",
    ]
