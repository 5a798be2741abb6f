"""What pyproject.toml says of the packages that the service stands on: all of them, and from which version to which."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {"db", "memory_service", "migrations"}
# Comes with PyJWT's extra `crypto`, whose keys it makes.
THROUGH = {"cryptography": "pyjwt"}


def requirements(lists: list[list[str]]) -> dict[str, Requirement]:
    """Returns what lists of requirements ask for, by its name."""
    found = [Requirement(one) for of_list in lists for one in of_list]
    return {canonicalize_name(one.name): one for one in found if one.name != PROJECT["name"]}


EVERYTHING = requirements([PROJECT["dependencies"], *EXTRAS.values()])
OF_SERVICE = requirements(
    [PROJECT["dependencies"], *(of_extra for extra, of_extra in EXTRAS.items() if extra != "dev")]
)


def imported() -> Iterator[str]:
    """Yields the packages that modules of the service import, ours and Python's own left out."""
    for folder in sorted(OWN):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                else:
                    continue
                yield from {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OWN


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_a_dependency_has_a_first_and_a_last_version(name: str) -> None:
    assert re.fullmatch(r">=[\d.]+,<[\d.]+", ",".join(sorted(map(str, EVERYTHING[name].specifier), reverse=True)))


def test_what_is_imported_is_named() -> None:
    providers = packages_distributions()
    for package in sorted(set(imported())):
        distributions = {canonicalize_name(THROUGH.get(name, name)) for name in providers[package]}
        assert distributions & OF_SERVICE.keys(), package
