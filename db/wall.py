"""Row-level security, the second wall between users: in whose name statements run, and how a transaction says so.

Every transaction takes one of two roles, for itself alone: that of one user's rows, with the user as memory.user_id, or
that of all users' rows. A statement that forgets its user_id then finds the rows of its user, and no others.
docs/adr/0014-row-level-security.md has the reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg
from psycopg.sql import SQL, Composed, Literal


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


# The settings end with the transaction; set_config takes them as parameters, and so in a statement that stays prepared.
ENTER = """/* wall.enter */
SELECT set_config('role', %(role)s, true), set_config('memory.user_id', %(user_id)s, true)
"""

# The same where sessions may change behind a connection (db/embedding_space.py): where the database is of another
# embedding space it divides by zero, where it is of this one it keeps it so until the transaction ends.
ENTER_IN_SPACE = """/* wall.enter_in_space */
SELECT set_config('role', %(role)s, true), set_config('memory.user_id', %(user_id)s, true),
    set_config('statement_timeout', %(statement_timeout)s, true),
    set_config('lock_timeout', %(statement_timeout)s, true),
    set_config('idle_in_transaction_session_timeout', %(idle_timeout)s, true),
    1 / count(*)
FROM embedding_space WHERE model = %(model)s AND dimensions = %(dimensions)s
"""
SPACE = ("model", "dimensions")
"""The parameters that it has beyond those of ENTER."""


def settings_of(whose: Whose, roles: Roles) -> dict[str, str]:
    """Returns the parameters of ENTER."""
    if isinstance(whose, AcrossUsers):
        return {"role": roles.all_users, "user_id": ""}
    return {"role": roles.one_user, "user_id": whose}


# Where the session keeps no time limits, behind a transaction pooler, each transaction takes them along.
ENTER_TIMED = """/* wall.enter_timed */
SELECT set_config('role', %(role)s, true), set_config('memory.user_id', %(user_id)s, true),
    set_config('statement_timeout', %(statement_timeout)s, true),
    set_config('lock_timeout', %(statement_timeout)s, true),
    set_config('idle_in_transaction_session_timeout', %(idle_timeout)s, true)
"""


def timeouts(statement_timeout_s: float) -> dict[str, str]:
    """Returns the parameters of ENTER_TIMED beyond those of ENTER, in milliseconds."""
    timeout_ms = round(statement_timeout_s * 1_000)
    return {"statement_timeout": str(timeout_ms), "idle_timeout": str(2 * timeout_ms)}


def literal_settings(parameters: Mapping[str, str]) -> list[Composed]:
    """Returns the commands that do what ENTER does with these parameters, for Citus."""
    return [
        SQL("SET LOCAL citus.propagate_set_commands = {}").format(Literal("local")),
        SQL("SET LOCAL ROLE {}").format(Literal(parameters["role"])),
        SQL("SET LOCAL memory.user_id = {}").format(Literal(parameters["user_id"])),
    ]


AS_SESSION = {"role": "none", "user_id": ""}
"""The parameters of ENTER for neither role: what the role that logged in may do by itself."""

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
