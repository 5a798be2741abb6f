"""The command line: what each command says, and with which status it ends."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from db import migrate, revisions
from memory_service import __version__
from memory_service.__main__ import main
from memory_service.failures import UNREAD
from tests.fix_database import DIMENSIONS, MODEL, NewDatabase
from tests.fix_server import COMMAND, DEFAULTS, StartServer, environment

LIMIT_S = 60


def run(*arguments: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Runs `memory-service` to its end with these arguments and settings."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def without_embedder(**settings: Any) -> dict[str, Any]:
    """Returns settings that agree with the databases of the tests."""
    return {**DEFAULTS, "embedding_model": MODEL, "embedding_dimensions": DIMENSIONS, **settings}


def assert_is_one_line(stderr: str) -> None:
    """Fails the test where more than one line that is no log event was printed."""
    [line] = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("memory-service: ")
    assert "Traceback" not in stderr


def run_here(*arguments: str) -> int:
    """Runs the command line in this process, which is quicker, as far as it fails before it sets up the log."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_help_names_the_commands_and_the_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("--help") == 0
    help_ = capsys.readouterr().out
    for word in ("serve", "migrate", "check", "version", "MEMORY_DATABASE_URL", "MEMORY_LISTEN", "Examples"):
        assert word in help_
    assert run_here("serve", "--help") == 0
    assert "--insecure" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve", "--workers", "many"], ["migrate", "--sql", "--status"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_here(*arguments) == 2
    assert "usage: memory-service" in capsys.readouterr().err


def test_version_names_what_it_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("version") == 0
    versions = capsys.readouterr().out
    assert versions.splitlines()[0] == f"memory-service {__version__}"
    for package in ("Python", "grpcio", "protobuf", "psycopg", "libpq"):
        assert re.search(rf"^{package} \d", versions, re.MULTILINE)


def test_output_that_nobody_reads_is_no_defect() -> None:
    with subprocess.Popen(
        [*COMMAND, "version"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == UNREAD


@pytest.mark.parametrize("command", ["serve", "migrate", "check"])
def test_all_bad_settings_are_listed_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    bad = {"LISTEN": "nowhere", "THREADS": "0", "EMBEDDER": "magic", "POOL_TIMEOUT_S": "soon"}
    for name, value in bad.items():
        monkeypatch.setenv(f"MEMORY_{name}", value)
    assert run_here(command) == 2
    complaint = capsys.readouterr().err
    for name in bad:
        assert f"\n  MEMORY_{name}: " in complaint


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MEMORY_LISTEN", "127.0.0.1:1")
    assert run_here("serve", "--listen", "nonsense") == 2
    assert "'nonsense' is not HOST:PORT" in capsys.readouterr().err


def test_unknown_variables_are_warned_about() -> None:
    result = run("migrate", "--sql", worker=3, **without_embedder())
    assert result.returncode == 0
    assert "warning: MEMORY_WORKER is not a setting; did you mean MEMORY_WORKERS?" in result.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_an_address_that_others_can_reach_is_refused(address: str) -> None:
    # The database does not exist: the refusal has to come before anything else.
    result = run("serve", "--listen", address, **without_embedder(database_url="postgresql://nowhere.invalid/none"))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert "without TLS (MEMORY_TLS_CERTIFICATE and MEMORY_TLS_KEY) and authentication (MEMORY_AUTH" in result.stderr
    assert "--insecure (MEMORY_INSECURE=true)" in result.stderr


def test_a_certificate_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    nowhere = "postgresql://nowhere.invalid/none"
    files = ["--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")]
    result = run("serve", *files, "--auth", "keys", "--listen", "0.0.0.0:0", **without_embedder(database_url=nowhere))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert f"cannot read {tmp_path / 'server.pem'}: No such file" in result.stderr


def test_it_is_accepted_where_the_network_is_trusted(start_server: StartServer) -> None:
    server = start_server(listen="0.0.0.0:0", insecure="true")
    assert server.address.startswith("0.0.0.0:")
    assert server.health() == "SERVING"


@pytest.mark.parametrize(("setting", "workers"), [("listen", 1), ("ops_listen", 2)])
def test_a_port_that_is_taken_is_said_in_one_line(database_url: str, setting: str, workers: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {**without_embedder(database_url=database_url, workers=workers), setting: address}
        result = run("serve", **settings)
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert f"cannot listen on {address}: the port is taken" in result.stderr


def test_a_host_that_does_not_exist_is_said_in_one_line() -> None:
    result = run("serve", "--listen", "nowhere.invalid:1", **without_embedder(database_url="postgresql:///none"))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_an_unreachable_database_is_said_in_one_line_without_the_password(command: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        url = f"postgresql://someone:hunter2@127.0.0.1:{port}/memory"
        result = run(command, **without_embedder(database_url=url))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert f'127.0.0.1", port {port}' in result.stderr
    assert "hunter2" not in result.stderr


def test_a_wrong_user_is_said_in_one_line(database_url: str) -> None:
    url = database_url.replace("postgres@", "no_such_role:hunter2@")
    assert urlsplit(url).username == "no_such_role"
    result = run("serve", **without_embedder(database_url=url))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert "hunter2" not in result.stderr


def test_an_old_schema_is_refused_naming_the_command(empty_database_url: str) -> None:
    result = run("serve", **without_embedder(database_url=empty_database_url))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert "memory-service migrate" in result.stderr


def test_another_embedding_space_is_refused_with_both(database_url: str) -> None:
    result = run("serve", **without_embedder(database_url=database_url, embedding_dimensions=16))
    assert result.returncode == 1
    assert_is_one_line(result.stderr)
    assert "8 dimensions" in result.stderr
    assert "16 dimensions" in result.stderr


@pytest.mark.long
def test_migrate_applies_what_is_pending_and_then_nothing(empty_database_url: str) -> None:
    settings = without_embedder(database_url=empty_database_url)

    before = run("migrate", "--status", **settings)
    assert before.returncode == 1
    assert "applied: none" in before.stdout
    first = run("migrate", **settings)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("applied 0001")
    after = run("migrate", "--status", **settings)
    assert after.returncode == 0
    assert after.stdout.splitlines() == [f"applied: up to {revisions.head()}", "pending: none"]
    second = run("migrate", **settings)
    assert second.returncode == 0
    assert second.stdout.startswith("nothing to do")


def test_migrate_goes_by_the_direct_url(empty_database_url: str) -> None:
    settings = without_embedder(
        database_url="postgresql://nowhere.invalid/none", direct_database_url=empty_database_url
    )
    assert run("migrate", **settings).returncode == 0


def test_migrate_prints_sql_without_a_database(new_database: NewDatabase) -> None:
    result = run("migrate", "--sql", **without_embedder(database_url="postgresql://nowhere.invalid/none"))
    assert result.returncode == 0, result.stderr
    url = new_database(dimensions=None)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(result.stdout.encode())
    assert migrate.pending(url) == []


def test_check_says_ok_to_each(database_url: str) -> None:
    result = run("check", **without_embedder(database_url=database_url))
    assert result.returncode == 0, result.stdout
    lines = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert lines == [
        "ok    configuration",
        "ok    database",
        "ok    connection pooler",
        "ok    PostgreSQL and pgvector",
        "ok    schema",
        "ok    embedding space",
        "ok    row-level security",
        "ok    embedding model",
    ]


def test_check_goes_on_after_failures(empty_database_url: str) -> None:
    result = run("check", **without_embedder(database_url=empty_database_url))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == [
        "FAIL  schema: the database has no memory-service schema; run: memory-service migrate"
    ]
    assert lines[-1].startswith("ok    embedding model")


def test_check_tries_the_model_although_the_database_is_gone() -> None:
    result = run("check", embedder="local", database_url="postgresql://someone:hunter2@nowhere.invalid/none")
    assert result.returncode == 1
    assert "FAIL  database: " in result.stdout
    assert "ok    embedding model: embedded a word" in result.stdout
    assert "hunter2" not in result.stdout + result.stderr


def test_check_really_asks_the_provider(database_url: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        result = run(
            "check",
            embedder="openai",
            openai_base_url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1",
            embedding_retries=0,
            embedding_timeout_s=5,
            database_url=database_url,
        )
    assert result.returncode == 1
    assert "FAIL  embedding model: " in result.stdout
    assert "FAIL  embedding space: " in result.stdout


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's own account can reach."""
    with tempfile.TemporaryDirectory(prefix="memory-service-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.long
def test_the_embedded_database_is_checked_migrated_and_stopped_again(data_dir: Path) -> None:
    check = run("check", "--data-dir", str(data_dir))
    assert check.returncode == 0, check.stdout + check.stderr
    assert "`memory-service serve` brings it to" in check.stdout
    assert run("migrate", "--data-dir", str(data_dir)).returncode == 0
    status = run("migrate", "--status", "--data-dir", str(data_dir))
    assert status.returncode == 0
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_a_data_directory_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("serve", "--data-dir", str(tmp_path / "file" / "below"), listen="127.0.0.1:0", ops_listen="off")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert str(tmp_path) in result.stderr


@pytest.mark.long
def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    installed = Path(sys.executable).parent / "memory-service"
    result = subprocess.run(
        [installed, "version"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=tmp_path,
        env=os.environ,
    )
    assert result.stdout == run("version").stdout
