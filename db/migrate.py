"""Brings a database's schema up to date with Alembic, from the plain SQL in migrations/versions."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import errors as pg
from sqlalchemy import TextClause
from sqlalchemy.exc import DBAPIError

from db.connecting import connect
from db.errors import Conflict, DatabaseError, SchemaMismatch, UnsupportedDatabase
from db.revisions import SCRIPTS, head
from db.schema import (
    EmbeddingSpace,
    SchemaFacts,
    read_facts,
    require_known_revision,
    require_space,
    require_supported,
)
from db.sqlstate import translate

OnWait = Callable[[float], None]
"""Called with the seconds waited so far while another migrator is at work: at once, and then every few seconds."""


def upgrade(
    url: str,
    space: EmbeddingSpace,
    *,
    revision: str = "head",
    lock_timeout_s: float = 600,
    on_wait: OnWait | None = None,
) -> list[str]:
    """Applies the pending migrations, each in a transaction; returns their revisions in order.

    Any number may run at the same time: one works, the others wait for it and find nothing left to do. After a kill
    at any point it can simply be run again.

    Args:
        url: The database, not through a transaction pooler: the lock belongs to the session.
        space: The embedding space a new database is made for; an existing one must agree.
        revision: The last one to apply.
        lock_timeout_s: Longest wait for another migrator.
        on_wait: Told about that wait.

    Raises:
        UnsupportedDatabase: PostgreSQL or pgvector is missing or too old, an administrator has to create it, or a
            pooler lies between.
        SchemaMismatch: The schema is newer, another application's or for another space; or the role may not change it.
        Conflict: Another migrator, or another lock, was in the way too long.
        DatabaseUnavailable: No connection, or it was lost.
    """
    applied: list[str] = []
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: connect(url), poolclass=sqlalchemy.NullPool
    )
    with _explained(url), engine.connect() as connection:
        config = _config(
            space=space,
            connection=connection,
            applied=applied,
            lock_timeout_s=lock_timeout_s,
            on_wait=on_wait or (lambda _: None),
        )
        command.upgrade(config, revision)
    return applied


def pending(url: str) -> list[str]:
    """Returns the revisions not yet applied, in order.

    Raises:
        SchemaMismatch: The schema is newer than this version, or another application's.
        DatabaseUnavailable: No connection.
    """
    with connect(url) as connection:
        facts = read_facts(connection)
    if facts.revision is not None:
        require_known_revision(facts.revision, head=head())
    scripts = ScriptDirectory.from_config(_config())
    newest_first = scripts.iterate_revisions("head", facts.revision or "base")
    return [script.revision for script in newest_first][::-1]


def script(space: EmbeddingSpace) -> str:
    """Returns all migrations as SQL that makes an empty database what `upgrade` would make it."""
    config = _config(space=space)
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    return config.output_buffer.getvalue()


def verbatim(statements: str) -> TextClause:
    """Returns SQL for `op.execute` that reaches the server as it stands; `:name` is no parameter in it."""
    return sqlalchemy.text(statements.strip().removesuffix(";").replace(":", r"\:"))


def require_upgradable(facts: SchemaFacts, space: EmbeddingSpace) -> None:
    """Raises UnsupportedDatabase or SchemaMismatch when the migrations cannot or must not run."""
    require_supported(facts)
    if facts.revision is not None:
        require_known_revision(facts.revision, head=head())
        require_space(facts, space)


def _config(**attributes: Any) -> Config:
    """Returns Alembic's configuration; migrations/env.py reads `attributes`."""
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns psycopg's errors, which SQLAlchemy wraps together with the statement, into ours."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        raise _explain(error.orig, url) from None
    except psycopg.Error as error:
        raise _explain(error, url) from None


def _explain(error: psycopg.Error, url: str) -> DatabaseError:
    reason = error.diag.message_primary or "no reason given"
    if isinstance(error, pg.InsufficientPrivilege):
        with connect(url) as connection:
            facts = read_facts(connection)
        if facts.pgvector_version is None:
            return UnsupportedDatabase(
                "the database has no pgvector and this role may not create it; have an administrator run in this "
                "database, as superuser: CREATE EXTENSION vector"
            )
        return SchemaMismatch(f"this role may not change the schema ({reason}); migrate as the owner of the database")
    if isinstance(error, pg.InvalidRoleSpecification):
        return UnsupportedDatabase(reason)  # of 0008, which says what an administrator has to run
    if isinstance(error, pg.LockNotAvailable):
        return Conflict("another session holds a lock on a table to be changed; end it, or run the migration again")
    if isinstance(error, pg.DuplicateTable | pg.DuplicateObject):
        return SchemaMismatch(f"{reason}, and memory-service did not make it; use a database of its own")
    return translate(error) or SchemaMismatch(f"a migration failed and was rolled back: {reason}")
