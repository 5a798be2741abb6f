"""The revisions of the schema that this version knows, without loading what applies them.

Alembic and SQLAlchemy take 0.4 s to import, which every command and every server process would pay for nothing.
"""

from pathlib import Path

# Inside this package once installed (see pyproject.toml), beside it in the repository.
INSTALLED = Path(__file__).parent / "_migrations"
SCRIPTS = INSTALLED if INSTALLED.is_dir() else Path(__file__).parent.parent / "migrations"


def head() -> str:
    """Returns the newest revision: files are named after theirs, numbers that grow with each one."""
    return max(script.name.partition("_")[0] for script in (SCRIPTS / "versions").glob("[0-9]*_*.py"))
