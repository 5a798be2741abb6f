"""The PostgreSQL of a run: embedded, in a temporary folder, with the settings the service gives it in production."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from db import migrate
from db.embedded import EmbeddedPostgres
from db.schema import EmbeddingSpace

MODEL = "caller"


class Instance:
    """Makes databases; stops PostgreSQL and removes everything on leaving."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="memory-service-benchmark-"))
        self._postgres = EmbeddedPostgres.start(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._postgres.close()
        shutil.rmtree(self._folder)

    def create(self, name: str, *, dimensions: int, model: str = MODEL) -> str:
        """Makes a migrated database, in place of one of that name, and returns its URL."""
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = self._postgres.database_url(name)
        migrate.upgrade(url, EmbeddingSpace(model, dimensions))
        return url

    def drop(self, name: str) -> None:
        """Removes a database."""
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def settings(self) -> dict[str, str]:
        """Returns the settings that differ from PostgreSQL's defaults and bear on speed."""
        with self._connect() as connection:
            rows = connection.execute(
                """SELECT name, current_setting(name) FROM pg_settings WHERE name IN (
                    'shared_buffers', 'maintenance_work_mem', 'work_mem', 'max_wal_size', 'fsync', 'jit',
                    'synchronous_commit', 'max_parallel_workers_per_gather', 'random_page_cost', 'server_version')"""
            ).fetchall()
        return dict(rows)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._postgres.database_url("postgres"), autocommit=True)


def settle(url: str) -> None:
    """Leaves a database as autovacuum would (index-only scans need the visibility map), its checkpoint behind it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
