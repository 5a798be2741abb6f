"""`memory-service import` with a policy for duplicates: what becomes of them, and which policies are refused."""

from pathlib import Path

import pytest

from tests.fix_server import ServerProcess
from tests.server.bulk_files import Import, count, line, write_lines


@pytest.mark.parametrize(
    ("policy", "said", "live"),
    [
        ("allow", "stored 4 memories, in ", 6),
        ("skip", "stored 1 memories, skipped 3 duplicates, in ", 3),
        ("reinforce", "stored 1 memories, reinforced 3 duplicates, in ", 3),
        ("supersede", "stored 4 memories, 3 of them in place of duplicates, in ", 3),
    ],
)
def test_duplicates_are_treated_as_asked(  # noqa: PLR0917 - fixtures and parameters
    import_file: Import,
    server: ServerProcess,
    user_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    policy: str,
    said: str,
    live: int,
) -> None:
    first = write_lines(tmp_path / "first.jsonl", [line(0), line(1)])
    second = write_lines(tmp_path / "second.jsonl", [line(1), line(2), line(0), line(2)])
    assert import_file(first) == 0
    capsys.readouterr()
    assert import_file(second, "--on-duplicate", policy, "--chunk-size", "3") == 0
    assert capsys.readouterr().out.startswith(said)
    assert count(server, user_id) == live
    assert import_file(second, "--on-duplicate", policy, "--chunk-size", "3") == 0
    assert capsys.readouterr().out.startswith("stored 0 memories, skipped 4 stored before, in ")


def test_another_policy_is_another_import(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(0), line(1)])
    assert import_file(path) == 0
    assert import_file(path, "--on-duplicate", "skip") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("stored 0 memories, skipped 2 duplicates, in ")
    assert import_file(path, "--on-duplicate", "skip", "--min-similarity", "0.999") == 0
    assert count(server, user_id) == 2


def test_similar_memories_are_duplicates_where_asked(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path
) -> None:
    embedding = [1.0, *[0.0] * 7]
    lines = [line(number, content=f"text {number}", embedding=embedding) for number in range(3)]
    path = write_lines(tmp_path / "memories.jsonl", lines)
    assert import_file(path, "--on-duplicate", "skip", "--min-similarity", "1") == 0
    assert count(server, user_id) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min-similarity", "0.9"], "--min-similarity needs --on-duplicate"),
        (["--on-duplicate", "skip", "--min-similarity", "0"], "expected above 0 and at most 1"),
        (["--on-duplicate", "skip", "--min-similarity", "nan"], "expected above 0 and at most 1"),
        (["--on-duplicate", "skip", "--min-similarity", "1.01"], "expected above 0 and at most 1"),
        (["--on-duplicate", "merge"], "invalid choice"),
        (["--on-duplicate", "skip", "--min-similarity", "0.9", "--embed-async"], "compares embeddings"),
    ],
)
def test_senseless_policies_are_refused(
    import_file: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(0)])
    assert import_file(path, *arguments) in {1, 2}
    assert said in capsys.readouterr().err
