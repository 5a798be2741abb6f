"""Row-level security, the second wall between users: in whose name statements run, and how a transaction says so.

Every transaction takes one of two roles, for itself alone: that of one user's rows, with the user as memory.user_id, or
that of all users' rows. A statement that forgets its user_id then finds the rows of its user, and no others.
docs/adr/0014-row-level-security.md has the reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal, Placeholder

from db.schema import EmbeddingSpace


class AcrossUsers(Enum):
    """Stands in a user's place for what concerns all of them by design: flushing, purging, operators' questions."""

    ACROSS_USERS = "across users"


ACROSS_USERS = AcrossUsers.ACROSS_USERS

Whose = str | AcrossUsers
"""Whose rows a transaction sees: those of the user with this id, or everybody's."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The database's roles for it. They are made by a migration, and named after the database of that time."""

    one_user: str
    all_users: str
    on_citus: bool = False
    """Whether Citus is there, which hands settings on to its workers only if they are literal and it is told to."""


Settings = Mapping[str, str]
"""Settings of PostgreSQL by their names."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """How a transaction begins."""

    settings: Settings
    """What it sets for itself."""
    space: EmbeddingSpace | None = None
    """What its embeddings are of, where sessions may change behind a connection (db/embedding_space.py); else None."""


def settings_of(whose: Whose, roles: Roles) -> Settings:
    """Returns what makes a transaction see these rows."""
    if isinstance(whose, AcrossUsers):
        return {"role": roles.all_users, "memory.user_id": ""}
    return {"role": roles.one_user, "memory.user_id": whose}


AS_SESSION: Settings = {"role": "none", "memory.user_id": ""}
"""What makes it see what the role that logged in may see by itself."""

# The settings end with the transaction; set_config takes them as parameters, and so in a statement that stays prepared.
ENTER = SQL("""/* wall.enter */
SELECT {settings}
""")

# Where the database is of another embedding space it divides by zero, where it is of this one it keeps it so until the
# transaction ends.
ENTER_IN_SPACE = SQL("""/* wall.enter_in_space */
SELECT {settings}, 1 / count(*)
FROM embedding_space WHERE model = %(model)s AND dimensions = %(dimensions)s
""")


@lru_cache(maxsize=64)
def _statement(in_space: bool, *names: str) -> bytes:  # noqa: FBT001 - looked up faster than by name
    settings = SQL(", ").join(
        SQL("set_config({}, {}, true)").format(Literal(name), Placeholder(name)) for name in names
    )
    return (ENTER_IN_SPACE if in_space else ENTER).format(settings=settings).as_bytes(None)


def enter(entrance: Entrance) -> tuple[bytes, Settings]:
    """Returns the statement that a transaction begins with, and its parameters."""
    settings, space = entrance.settings, entrance.space
    statement = _statement(space is not None, *settings)
    if space is None:
        return statement, settings
    return statement, {**settings, "model": space.model, "dimensions": str(space.dimensions)}


def literal_settings(settings: Settings) -> list[Composed]:
    """Returns the commands that make the settings on Citus, which hands on nothing but literals."""
    given = {"citus.propagate_set_commands": "local", **settings}
    # A name of two parts is one of both, each quoted by itself.
    return [
        SQL("SET LOCAL {} = {}").format(Identifier(*name.split(".")), Literal(value)) for name, value in given.items()
    ]


# By the policies, not by name: a database may have been renamed, copied or restored under another name.
ROLES = """/* wall.roles */
SELECT min(r.rolname) FILTER (WHERE p.polname = 'one_user'), min(r.rolname) FILTER (WHERE p.polname = 'all_users'),
    EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
FROM pg_policy p JOIN pg_roles r ON r.oid = ANY(p.polroles)
WHERE p.polrelid = to_regclass('memory_entries')
"""


def read_roles(connection: psycopg.Connection[Any]) -> Roles | None:
    """Returns the roles, None in a database whose schema is older than they are, or absent."""
    row = connection.execute(ROLES).fetchone()
    return None if row is None or None in row else Roles(*row)
