"""Whether the wall between users stands in a database, and whether it holds whoever logs in; for operators."""

from dataclasses import dataclass
from typing import Any

import psycopg

from db.connecting import connect, describe_failure
from db.errors import DatabaseUnavailable, UnsupportedDatabase
from db.wall import Roles, read_roles


@dataclass(frozen=True, slots=True, kw_only=True)
class WallFacts:
    """What matters of the roles and the tables."""

    roles: Roles | None
    login: str
    """Who logged in."""
    may_enter: bool
    """Whether whoever logged in may take both roles."""
    login_sees_all: bool
    """Whether it sees everybody's rows without either of them."""
    unprotected: tuple[str, ...]
    """Tables with a user_id whose row-level security is not forced."""


# session_user: statements may run as one of the roles. Partitions are guarded by the table they are of.
FACTS = """/* wall_facts.login */
SELECT session_user::text, rolsuper OR rolbypassrls,
    coalesce(pg_has_role(session_user, to_regrole(%(one_user)s)::oid, 'SET')
        AND pg_has_role(session_user, to_regrole(%(all_users)s)::oid, 'SET'), false),
    coalesce(pg_has_role(session_user, to_regrole(%(all_users)s)::oid, 'USAGE'), false)
FROM pg_roles WHERE rolname = session_user
"""

UNPROTECTED = """/* wall_facts.unprotected */
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('memory_entries'))
    AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attname = 'user_id' AND NOT a.attisdropped
    AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
ORDER BY 1
"""


def read_wall(connection: psycopg.Connection[Any]) -> WallFacts:
    """Returns the facts of the database that `connection` leads to."""
    roles = read_roles(connection)
    quoted = {
        "one_user": None if roles is None else _quoted(roles.one_user),
        "all_users": None if roles is None else _quoted(roles.all_users),
    }
    row = connection.execute(FACTS, quoted).fetchone()
    assert row is not None  # noqa: S101 - who logged in has a role
    login, bypasses, may_enter, inherits = row
    return WallFacts(
        roles=roles,
        login=login,
        may_enter=may_enter,
        login_sees_all=bypasses or inherits,
        unprotected=tuple(name for (name,) in connection.execute(UNPROTECTED).fetchall()),
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def wall_of(url: str) -> WallFacts:
    """Returns the facts of the database at `url`.

    Raises:
        DatabaseUnavailable: When it cannot be reached or read, with the reason for the operator.
    """
    with connect(url, autocommit=True) as connection:
        try:
            return read_wall(connection)
        except psycopg.Error as error:
            raise DatabaseUnavailable(describe_failure(url, error)) from None


def require_wall(facts: WallFacts) -> None:
    """Returns when transactions can be confined to their users, and all tables are.

    Raises:
        UnsupportedDatabase: When they cannot; the message says what an administrator has to run.
    """
    if facts.roles is None:
        raise UnsupportedDatabase(
            "the policies of row-level security on memory_entries are missing; restore them from migration 0008"
        )
    if facts.unprotected:
        raise UnsupportedDatabase(
            f"row-level security is not forced on {', '.join(facts.unprotected)}; have the owner run for each: "
            "ALTER TABLE ... ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        )
    if not facts.may_enter:
        one_user, all_users, login = map(_quoted, (facts.roles.one_user, facts.roles.all_users, facts.login))
        raise UnsupportedDatabase(
            f"the role {facts.login} may not take the roles of row-level security; have an administrator run: "
            f"GRANT {one_user}, {all_users} TO {login} WITH INHERIT FALSE, SET TRUE"
        )


def describe(facts: WallFacts) -> str:
    """Returns what to tell an operator of a wall that stands."""
    if not facts.login_sees_all:
        return f"forced; {facts.login} sees no user's rows by itself"
    return (
        f"forced, but {facts.login} sees all rows when it takes neither role: it is a superuser, has BYPASSRLS or "
        "inherits the role across users"
    )
