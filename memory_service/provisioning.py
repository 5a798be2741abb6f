"""The database a command works on: the embedded PostgreSQL, started for it, or the one that is configured."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import structlog

from db import revisions, schema
from db.connecting import connect, is_pooled
from db.embedded import EmbeddedPostgres
from db.facts import facts_of, move_of
from db.pool import Database, PoolOptions
from db.schema import EmbeddingSpace
from db.wall_facts import describe, require_wall, wall_of
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


@contextmanager
def open_database(provision: Provision, settings: Settings) -> Iterator[Database]:
    """Yields a pool of one connection, as a command needs it that asks one thing after the other.

    Raises:
        DatabaseError: When the database cannot be reached.
    """
    options = PoolOptions(
        min_size=1,
        max_size=1,
        timeout_s=settings.pool_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        prepared_statements=settings.prepared_statements,
    )
    with closing(Database(provision.url, options)) as database:
        database.open()
        yield database


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
    schema.require(facts_of(provision.url), head=revisions.head(), space=space_in_force(settings, provision.url))
    facts = wall_of(provision.url)
    require_wall(facts)
    if facts.login_sees_all and not settings.embedded:  # whose only login is a superuser, over a socket of its own
        log.warning("login_role_sees_all_rows", role=facts.login, wall=describe(facts))
    if not settings.row_level_security:
        log.warning("row_level_security_off")
    if goes_through_pooler(provision.url):
        log.info("connection_pooler_found", prepared_statements=settings.prepared_statements is True)


def goes_through_pooler(url: str) -> bool:
    """Returns whether connections to `url` lead to a pooler.

    Raises:
        DatabaseUnavailable: When the database cannot be reached.
    """
    with connect(url, autocommit=True) as connection:
        return is_pooled(connection)


def apply_migrations(settings: Settings, provision: Provision) -> list[str]:
    """Applies the pending migrations and returns their revisions.

    Raises:
        DatabaseError: When they cannot be applied.
    """
    from db import migrate  # noqa: PLC0415 - see db/revisions.py

    def on_wait(waited_s: float) -> None:
        log.info("waiting_for_another_migration", waited_s=round(waited_s))

    space = space_in_force(settings, provision.direct_url)
    return migrate.upgrade(provision.direct_url, space, on_wait=on_wait)


def space_in_force(settings: Settings, url: str) -> EmbeddingSpace:
    """Returns the space that the database at `url` is to be in: where a move has led, or else the configured one.

    A move to another embedding model is newer than the settings until it is cleaned up.

    Raises:
        DatabaseUnavailable: When the database cannot be reached.
    """
    move = move_of(url)
    return embedding_space(settings) if move is None else move.live
