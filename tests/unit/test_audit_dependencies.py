"""What `make audit` makes of pip-audit's answers."""

import importlib.util
import stat
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit_dependencies.py"

REPORT = """{"dependencies": [
    {"name": "sound", "version": "1.0", "vulns": []},
    {"name": "holed", "version": "2.0", "vulns": [
        {"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"], "aliases": [], "description": "d"},
        {"id": "PYSEC-2", "fix_versions": [], "aliases": [], "description": "d"}]},
    {"name": "unknown", "skip_reason": "it is on no index"},
    {"name": "memory-service", "skip_reason": "it is on no index"}
], "fixes": []}"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def answers(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a program called pip-audit answers with the files `out` and `err`."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/out\ncat {tmp_path}/err >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (tmp_path / "out").touch()
    (tmp_path / "err").touch()
    monkeypatch.setattr(script, "AUDITED", tmp_path)
    monkeypatch.setattr(script.sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


def test_vulnerabilities_are_told_and_fail(
    script: ModuleType, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (answers / "out").write_text(REPORT)
    assert script.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "VULNERABLE holed 2.0: PYSEC-1, fixed in 2.1, 3.0",
        "VULNERABLE holed 2.0: PYSEC-2, fixed in no version",
        "SKIPPED unknown: it is on no index",
        "2 packages looked up, 2 vulnerabilities known",
    ]


def test_a_database_out_of_reach_is_said_and_fails_where_required(
    script: ModuleType, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (answers / "err").write_text("a warning\nERROR: connection refused\n")
    assert script.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "SKIPPED all packages: ERROR: connection refused",
        "NOT AUDITED: the database of vulnerabilities is out of reach, or knows none of the packages",
        "0 packages looked up, 0 vulnerabilities known",
    ]
    assert script.main(["--require"]) == 1


def test_nothing_found_is_success(script: ModuleType, answers: Path) -> None:
    (answers / "out").write_text('{"dependencies": [{"name": "sound", "version": "1.0", "vulns": []}]}')
    assert script.main(["--require"]) == 0
