"""Runs the migrations for Alembic: plain SQL, a transaction for each, one migrator at a time.

`db.migrate` calls this with what it needs in `config.attributes`; there is no alembic.ini.
"""

import time
from collections.abc import Collection, Mapping
from typing import Any

import psycopg
import structlog
from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection

from db.connecting import require_session
from db.errors import Conflict
from db.migrate import require_upgradable
from db.schema import read_facts

log = structlog.get_logger("migrations")
options: Mapping[str, Any] = context.config.attributes

# Polled, not waited for: a session waiting inside a statement holds a snapshot, and CREATE INDEX CONCURRENTLY in the
# other migrator waits for all snapshots to go. "memory" in ASCII; the lock is the database's own.
TRY_LOCK = "/* migrate.lock */ SELECT pg_try_advisory_lock(x'6d656d6f7279'::bigint)"
POLL_S = 0.2
SAY_EVERY_S = 10.0

# A migration that waits for a table's lock makes everybody after it wait too: it gives up soon and can be run again.
# Limits on time set for the role are not meant for migrations. The server ends the statement of a client that was
# killed, and frees its lock, within two seconds (where its operating system can tell).
SESSION = """/* migrate.session */
SET lock_timeout = '5s';
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
DO $$ BEGIN SET client_connection_check_interval = '2s'; EXCEPTION WHEN invalid_parameter_value THEN NULL; END $$
"""


def run_offline() -> None:
    """Prints the migrations as SQL."""
    # Any parameter style but psycopg's, for which SQLAlchemy would print each % twice.
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Applies the pending migrations."""
    connection: Connection = options["connection"]
    require_session(psycopg_connection(connection))
    wait_for_lock(connection)
    connection.exec_driver_sql(SESSION)
    require_upgradable(read_facts(psycopg_connection(connection)), options["space"])
    connection.commit()  # Alembic must find no transaction begun, or it would put all migrations into that one
    context.configure(connection=connection, transaction_per_migration=True, on_version_apply=record)
    with context.begin_transaction():
        context.run_migrations()


def wait_for_lock(connection: Connection) -> None:
    """Takes the lock of migrators, which ends with the session; raises Conflict when it takes too long."""
    started_at = time.monotonic()
    said_at = -SAY_EVERY_S
    while not connection.exec_driver_sql(TRY_LOCK).scalar_one():
        connection.commit()
        waited_s = time.monotonic() - started_at
        if waited_s > options["lock_timeout_s"]:
            raise Conflict(f"another migration of this database has not ended for {waited_s:.0f} s; try again later")
        if waited_s - said_at >= SAY_EVERY_S:
            said_at = waited_s
            log.info("migration_waiting_for_another", waited_s=round(waited_s))
            options["on_wait"](waited_s)
        time.sleep(POLL_S)


def psycopg_connection(connection: Connection) -> psycopg.Connection[Any]:
    """Returns the connection that SQLAlchemy wraps."""
    wrapped = connection.connection.driver_connection
    assert isinstance(wrapped, psycopg.Connection)  # noqa: S101 - made by db.migrate
    return wrapped


def record(
    ctx: MigrationContext,  # noqa: ARG001 - Alembic names the parameters
    step: MigrationInfo,
    heads: Collection[Any],  # noqa: ARG001
    run_args: Mapping[str, Any],  # noqa: ARG001
) -> None:
    """Notes an applied migration."""
    revision = step.up_revision_id
    options["applied"].append(revision)
    log.info("migration_applied", revision=revision)


if context.is_offline_mode():
    run_offline()
else:
    run_online()
