"""`memory-service migrate`: applies the migrations, lists them, or prints them as SQL."""

from collections.abc import Callable

from db import migrate, revisions
from db.facts import facts_of
from memory_service.config import Settings
from memory_service.provisioning import apply_migrations, embedding_space, provide_database

Say = Callable[[str], None]


def run(settings: Settings, say: Say) -> int:
    """Applies the pending migrations; returns the exit status."""
    with provide_database(settings) as provision:
        applied = apply_migrations(settings, provision)
    say(f"applied {', '.join(applied)}" if applied else f"nothing to do: the schema is at revision {revisions.head()}")
    return 0


def status(settings: Settings, say: Say) -> int:
    """Says what is applied and what is pending; returns 1 when something is."""
    with provide_database(settings) as provision:
        applied = facts_of(provision.direct_url).revision
        pending = migrate.pending(provision.direct_url)
    say(f"applied: {'none' if applied is None else f'up to {applied}'}")
    say(f"pending: {', '.join(pending) or 'none'}")
    return 1 if pending else 0


def script(settings: Settings, say: Say) -> int:
    """Prints the SQL of all migrations, without connecting to a database."""
    say(migrate.script(embedding_space(settings)))
    return 0
