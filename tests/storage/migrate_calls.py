"""Databases before and after migrations: which revisions and tables they have."""

import psycopg

from db import migrate, revisions
from db.schema import EmbeddingSpace

SPACE = EmbeddingSpace("test-model", 8)


def connected(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True)


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows}


def revisions_after(revision: str, url: str) -> list[str]:
    with connected(url) as connection:
        connection.execute("DELETE FROM alembic_version")
        every = migrate.pending(url)
        connection.execute("INSERT INTO alembic_version VALUES (%s)", [revisions.head()])
    return every[every.index(revision) + 1 :]
