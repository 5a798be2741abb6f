"""Reads what a database is (its versions, schema revision and embedding space) and says whether it will do."""

import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from db.errors import SchemaMismatch, UnsupportedDatabase

# Before 0.8.4 deletes could damage HNSW indexes (pgvector changelog 0.8.3 and 0.8.4); STORAGE in CREATE TABLE is new
# in PostgreSQL 16.
LEAST_POSTGRES = (16,)
LEAST_PGVECTOR = (0, 8, 4)
# Others lack characters, or count them otherwise.
ENCODING = "UTF8"

MIGRATE = "memory-service migrate"
REEMBED = "memory-service reembed"
UPDATE_PGVECTOR = "ALTER EXTENSION vector UPDATE"


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """What makes embeddings comparable: the model that made them and their number of dimensions."""

    model: str
    dimensions: int

    def __str__(self) -> str:
        return f"model {self.model!r} with {self.dimensions} dimensions"


@dataclass(frozen=True, slots=True)
class SchemaFacts:
    """What a database is."""

    postgres_version: str
    pgvector_version: str | None
    """The version in use in this database; None while the extension is not created."""
    revision: str | None
    """The newest migration applied; None in a database without our schema."""
    space: EmbeddingSpace | None
    pgvector_available: str | None = None
    """The version the server would create or update to; None where pgvector is not installed."""
    encoding: str = ENCODING
    """How the database keeps text."""


FACTS = """/* schema.facts */
SELECT current_setting('server_version'),
       (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
       to_regclass('alembic_version') IS NOT NULL,
       to_regclass('embedding_space') IS NOT NULL,
       current_setting('server_encoding')
"""

REVISION = "/* schema.revision */ SELECT version_num FROM alembic_version"

SPACE = "/* schema.space */ SELECT model, dimensions FROM embedding_space"


def read_facts(connection: psycopg.Connection[Any]) -> SchemaFacts:
    """Returns the facts of the database that `connection` leads to; needs no schema in it."""
    row = _one(connection, FACTS)
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    postgres_version, pgvector_version, pgvector_available, has_revision, has_space, encoding = row
    revision = _one(connection, REVISION) if has_revision else None
    space = _one(connection, SPACE) if has_space else None
    return SchemaFacts(
        postgres_version=postgres_version,
        pgvector_version=pgvector_version,
        revision=revision[0] if revision else None,
        space=EmbeddingSpace(*space) if space else None,
        pgvector_available=pgvector_available,
        encoding=encoding,
    )


def require(facts: SchemaFacts, *, head: str, space: EmbeddingSpace) -> None:
    """Returns when the service can run on a database with these facts.

    Args:
        facts: From `read_facts`.
        head: The newest revision this version knows, from `db.revisions.head`.
        space: The configured embedding space.

    Raises:
        UnsupportedDatabase: PostgreSQL or pgvector is too old, or the encoding is not UTF8.
        SchemaMismatch: The schema is older or newer than `head`, or was made for another embedding space.

    Each message ends with what to do.
    """
    require_supported(facts)
    if facts.revision is None:
        raise SchemaMismatch(f"the database has no memory-service schema; run: {MIGRATE}")
    if facts.revision != head:
        require_known_revision(facts.revision, head=head)
        raise SchemaMismatch(
            f"the database schema is at revision {facts.revision}, this version needs {head}; run: {MIGRATE}"
        )
    require_space(facts, space)


def require_supported(facts: SchemaFacts) -> None:
    """Raises UnsupportedDatabase when the service cannot work there, whatever the schema.

    PostgreSQL, or the pgvector in use or to be created, is too old or missing, or the encoding is not UTF8.
    """
    if _numbers(facts.postgres_version) < LEAST_POSTGRES:
        raise UnsupportedDatabase(
            f"PostgreSQL {facts.postgres_version} is too old: {_dotted(LEAST_POSTGRES)} or newer is needed"
        )
    if facts.encoding != ENCODING:
        raise UnsupportedDatabase(
            f"the database keeps text as {facts.encoding}: one is needed that was created WITH ENCODING '{ENCODING}'"
        )
    needed = f"version {_dotted(LEAST_PGVECTOR)} or newer is needed"
    available = facts.pgvector_available
    if facts.pgvector_version is None:
        if available is None:
            raise UnsupportedDatabase(f"pgvector is not installed on the database server: {needed}")
        if _numbers(available) < LEAST_PGVECTOR:
            raise UnsupportedDatabase(f"pgvector {available} on the database server is too old: {needed}")
    elif _numbers(facts.pgvector_version) < LEAST_PGVECTOR:
        raise UnsupportedDatabase(
            f"pgvector {facts.pgvector_version} in this database is too old: {needed}; "
            + (
                f"the server has {available}, have its owner run in this database: {UPDATE_PGVECTOR}"
                if available is not None and _numbers(available) >= LEAST_PGVECTOR
                else f"install it on the database server, then run in this database: {UPDATE_PGVECTOR}"
            )
        )


def require_known_revision(revision: str, *, head: str) -> None:
    """Raises SchemaMismatch when `revision` is not of this version's; ours are numbers that grow with each one."""
    if not revision.isdigit():
        raise SchemaMismatch(
            f"alembic_version holds {revision!r}, which is no revision of memory-service: another application's "
            "schema lives in this database; use a database of its own for memory-service"
        )
    if int(revision) > int(head):
        raise SchemaMismatch(
            f"this binary is older than the database: it knows schema revisions up to {head}, the database is at "
            f"{revision}; run a newer memory-service"
        )


def require_space(facts: SchemaFacts, space: EmbeddingSpace) -> None:
    """Raises SchemaMismatch when the database was made for another embedding space than `space`."""
    if facts.space != space:
        raise SchemaMismatch(
            f"the database is of {facts.space or 'no embedding space'}, but the configuration has {space}; set "
            "MEMORY_EMBEDDER, MEMORY_EMBEDDING_MODEL and MEMORY_EMBEDDING_DIMENSIONS to match, or move the database: "
            f"{REEMBED}"
        )


def _one(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...] | None:
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement.encode()).fetchone()


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: "16.4 (Debian 16.4-1)" is (16, 4), "18beta2" is (18,)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
