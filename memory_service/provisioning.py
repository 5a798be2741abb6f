"""The database a command works on: the embedded PostgreSQL, started for it, or the one that is configured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from db import migrate, schema
from db.embedded import EmbeddedPostgres
from db.facts import facts_of
from db.schema import EmbeddingSpace
from memory_service.config import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Provision:
    """A database that runs."""

    url: str
    direct_url: str
    """The same without a transaction pooler in between, for migrations."""
    ensure_running: Callable[[], None] | None
    """Starts it again if it died; None where it is not ours."""


@contextmanager
def provide_database(settings: Settings) -> Iterator[Provision]:
    """Yields the database; the embedded one is started, and stopped afterwards unless others use it.

    Raises:
        EmbeddedPostgresError: When the embedded PostgreSQL cannot run.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        direct = settings.direct_database_url or settings.database_url
        yield Provision(url, direct.get_secret_value(), None)
        return
    with EmbeddedPostgres.start(settings.data_dir) as postgres:
        yield Provision(postgres.url, postgres.url, postgres.ensure_running)


def embedding_space(settings: Settings) -> EmbeddingSpace:
    """Returns the embedding space that is configured."""
    return EmbeddingSpace(settings.model, settings.dimensions)


def require_schema(settings: Settings, provision: Provision) -> None:
    """Returns when the schema is the one needed; migrates the embedded database, and no other.

    Raises:
        DatabaseError: When the database cannot be reached or will not do; the message says what to do next.
    """
    if settings.embedded:
        apply_migrations(settings, provision)
    schema.require(facts_of(provision.url), head=migrate.head(), space=embedding_space(settings))


def apply_migrations(settings: Settings, provision: Provision) -> list[str]:
    """Applies the pending migrations and returns their revisions.

    Raises:
        DatabaseError: When they cannot be applied.
    """

    def on_wait(waited_s: float) -> None:
        log.info("waiting_for_another_migration", waited_s=round(waited_s))

    return migrate.upgrade(provision.direct_url, embedding_space(settings), on_wait=on_wait)
