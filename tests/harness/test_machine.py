"""Which revision a measurement says it is of."""

import subprocess
from pathlib import Path

from harness.machine import revision


def test_results_written_meanwhile_do_not_make_a_revision_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    results, source = tmp_path / "part" / "results" / "full.json", tmp_path / "part" / "source.py"
    results.parent.mkdir(parents=True)
    results.write_text("before")
    source.write_text("before")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "--short", "HEAD")

    results.write_text("after")
    assert revision(results.parent.parent) == commit
    source.write_text("after")
    assert revision(results.parent.parent) == f"{commit}-dirty"


def test_outside_git_there_is_no_revision(tmp_path: Path) -> None:
    assert revision(tmp_path) == ""
