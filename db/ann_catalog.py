"""What approximate indexes exist: read from PostgreSQL's catalogs, which alone say whether one is valid."""

import re
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from db.connection import Connection

PREFIX = "memory_ann_"
GLOBAL_NAME = "memory_ann_global"
"""The index across users."""
NEW = "_new"
"""Ends the name of an index that is to take another's place."""

# REINDEX CONCURRENTLY, when somebody runs it by hand and it breaks off, leaves _ccnew or _ccold, perhaps numbered.
_OURS = re.compile(rf"(?P<base>{PREFIX}(?:[0-9a-f]{{16}}|global))(?P<leftover>{NEW}|_ccnew\d*|_ccold\d*)?")


def name_of(user_id: str) -> str:
    """Returns the name of the user's index: a hash, since a name has 63 bytes and may show up in logs."""
    return PREFIX + sha256(user_id.encode()).hexdigest()[:16]


class IndexState(Enum):
    """What an index is doing."""

    READY = "ready"
    """Searches use it."""
    BUILDING = "building"
    """Somebody builds it."""
    INVALID = "invalid"
    """Its build, or its removal, broke off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo:
    """An approximate index as it stands in the database."""

    name: str
    user_id: str | None
    """None for the index across users, for leftovers, and for an index that nobody wants any more."""
    method: str
    """hnsw or ivfflat."""
    state: IndexState
    bytes: int
    scans: int
    """How often it was searched since statistics were last reset."""
    entries: int
    """How many memories it held when it was built or last vacuumed."""
    options: dict[str, int]
    """Its parameters, such as m or lists."""

    @property
    def base_name(self) -> str:
        """The name it has or is to have; differs for a leftover."""
        match = _OURS.fullmatch(self.name)
        assert match is not None  # noqa: S101 - list_indexes returns no others
        return match["base"]

    @property
    def is_leftover(self) -> bool:
        """Whether it is what an interrupted replacement left."""
        return self.name != self.base_name

    @property
    def is_global(self) -> bool:
        """Whether it is the index across users."""
        return self.name == GLOBAL_NAME


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far the build is that is going on."""

    phase: str
    done: int
    total: int
    """0 where PostgreSQL does not tell."""


# One command at a time can build or drop a table's indexes concurrently; REINDEX has two indexes in the works and
# reports one of them.
LIST = """/* ann_catalog.list */
SELECT c.relname,
       am.amname,
       i.indisvalid AND i.indisready AND i.indislive,
       EXISTS (
           SELECT FROM pg_stat_progress_create_index p
           WHERE p.relid = i.indrelid AND p.datname = current_database()
             AND (p.index_relid = c.oid OR p.command LIKE 'REINDEX%%')
       ),
       coalesce(pg_relation_size(c.oid), 0),
       coalesce(pg_stat_get_numscans(c.oid), 0),
       greatest(c.reltuples, 0)::bigint,
       coalesce(c.reloptions, '{}')
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am am ON am.oid = c.relam
WHERE i.indrelid = to_regclass('memory_entries') AND starts_with(c.relname, %(prefix)s)
ORDER BY 5 DESC, 1
"""

# Housekeeping, across users.
USERS = "/* ann_catalog.users */ SELECT index_name, user_id FROM ann_indexes"

PROGRESS = """/* ann_catalog.progress */
SELECT phase, tuples_done, tuples_total
FROM pg_stat_progress_create_index
WHERE relid = to_regclass('memory_entries') AND datname = current_database()
"""

WANTED = "/* ann_catalog.wanted */ SELECT user_id FROM ann_indexes ORDER BY user_id"


def list_indexes(conn: Connection) -> list[IndexInfo]:
    """Returns the approximate indexes, largest first; those that others made under other names are not ours."""
    with conn.as_session():
        rows = conn.query(LIST, {"prefix": PREFIX}).fetchall()
    users: dict[str, str] = dict(conn.query(USERS, {}).fetchall()) if rows else {}
    return [
        IndexInfo(
            name=name,
            user_id=users.get(name),
            method=method,
            state=_state(valid=valid, building=building),
            bytes=size,
            scans=scans,
            entries=entries,
            options=_numbers(options),
        )
        for name, method, valid, building, size, scans, entries, options in rows
        if _OURS.fullmatch(name)
    ]


def _state(*, valid: bool, building: bool) -> IndexState:
    if valid:
        return IndexState.READY
    return IndexState.BUILDING if building else IndexState.INVALID


def _numbers(options: list[str]) -> dict[str, int]:
    pairs = (option.split("=", 1) for option in options)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def wanted_users(conn: Connection) -> list[str]:
    """Returns the users who are to have an index of their own, as far as there is room for it."""
    return [user_id for (user_id,) in conn.query(WANTED, {}).fetchall()]


def progress(conn: Connection) -> BuildProgress | None:
    """Returns how far the build of an index on memories is, None where none goes on."""
    with conn.as_session():
        row = conn.query(PROGRESS, {}).fetchone()
    return None if row is None else BuildProgress(row[0], row[1] or 0, row[2] or 0)
