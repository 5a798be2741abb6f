"""Proves the direction of imports: memory_service knows db, db does not know memory_service, and so for the rest."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = {"benchmarks", "evaluation", "faults"}
STORAGE = sorted([*(ROOT / "db").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")])


def imported_packages(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


def test_the_walk_sees_imports_of_every_form() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g\n    from h import i\n"
    assert set(imported_packages(source)) == {"a", "c", "g", "h"}


@pytest.mark.parametrize("path", STORAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_storage_does_not_import_the_service(path: Path) -> None:
    assert "memory_service" not in set(imported_packages(path.read_text()))
    assert "grpc" not in set(imported_packages(path.read_text()))


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_experiments_share_only_the_harness(name: str) -> None:
    others = EXPERIMENTS - {name}
    for path in (*(ROOT / name).rglob("*.py"), *(ROOT / "harness").rglob("*.py")):
        assert not others & set(imported_packages(path.read_text())), path


@pytest.mark.parametrize("name", ["memory_service", "db"])
def test_the_product_knows_no_experiments(name: str) -> None:
    for path in (ROOT / name).rglob("*.py"):
        assert not (EXPERIMENTS | {"harness", "tests"}) & set(imported_packages(path.read_text())), path
