"""Finding the memories nearest to a vector among those of all users.

In two statements: the first finds keys and distances, the second reads the rows of the few that are returned. On
Citus the first runs on every shard, and what it selects is sent to the coordinator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from psycopg.sql import SQL

from db.ann_catalog import GLOBAL_NAME
from db.ann_registry import AnnIndex
from db.ann_walk import depth
from db.connection import Connection
from db.errors import ReplyTooLarge
from db.memory import COLUMNS, View, from_row
from db.search import Hit
from db.search_plan import Plan, SearchTuning
from db.vectors import Embedding, to_parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestOfAll:
    """What to look for: the `limit` live memories nearest to `embedding` by cosine, whoever's they are."""

    embedding: Embedding
    limit: int
    min_score: float | None = None
    view: View = View.BASIC
    max_text_bytes: int | None = None
    ef_search: int | None = None


@dataclass(frozen=True, slots=True)
class GlobalAnswer:
    """What was found, nearest first, equal distances by user and id, and how."""

    hits: list[Hit]
    plan: Plan


@dataclass(frozen=True, slots=True)
class _Key:
    distance: float
    user_id: str
    id: UUID
    text_bytes: int

    @property
    def score(self) -> float:
        return max(-1.0, min(1.0, 1.0 - self.distance))


def search_all_users(conn: Connection, nearest: NearestOfAll, tuning: SearchTuning) -> GlobalAnswer:
    """Returns what is nearest: by the index across users, or where it has too little, by comparing everything.

    Raises:
        ReplyTooLarge: When the results hold more than `max_text_bytes` of text.
    """
    plan, keys = Plan.ANN, _walk(conn, nearest, tuning)
    if len(keys) < nearest.limit:
        plan, keys = Plan.EXACT, _compare(conn, nearest)
    if nearest.min_score is not None:
        keys = [key for key in keys if key.score >= nearest.min_score]
    _require_room(keys, nearest)
    return GlobalAnswer(_read(conn, keys, nearest.view), plan)


# An index that is being built, or whose build broke off, is not valid.
INDEX = """/* global_search.index */
SELECT c.relname, am.amname, coalesce(
    (SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'lists'), 0
)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am am ON am.oid = c.relam
WHERE c.oid = to_regclass(%(name)s) AND i.indisvalid AND i.indisready AND i.indislive
"""

# The first condition is that of the index, word for word; of the users' own indexes none fits.
WALK = """/* global_search.walk */
SELECT embedding <=> %(unit)s AS distance, user_id, id, text_bytes
FROM memory_entries
WHERE deleted_at IS NULL AND embedding IS NOT NULL
ORDER BY embedding <=> %(unit)s
LIMIT %(limit)s
"""


def _walk(conn: Connection, nearest: NearestOfAll, tuning: SearchTuning) -> list[_Key]:
    """Walks the index; returns nothing where there is none, and too little where it is full of deleted memories."""
    row = conn.query(INDEX, {"name": GLOBAL_NAME}).fetchone()
    if row is None:
        return []
    settings = depth(AnnIndex(*row), tuning, limit=nearest.limit, ef_search=nearest.ef_search)
    rows = conn.query(WALK, _parameters(nearest), settings=settings).fetchall()
    # Relaxed order is nearly the order of distance.
    return sorted((_Key(*row) for row in rows), key=lambda key: (key.distance, key.user_id, key.id))


# Every live memory there is: `+ 0` keeps the planner from an approximate index.
COMPARE = """/* global_search.compare */
SELECT (embedding <=> %(unit)s) + 0 AS distance, user_id, id, text_bytes
FROM memory_entries
WHERE deleted_at IS NULL AND embedding IS NOT NULL
ORDER BY distance, user_id, id
LIMIT %(limit)s
"""


def _compare(conn: Connection, nearest: NearestOfAll) -> list[_Key]:
    return [_Key(*row) for row in conn.query(COMPARE, _parameters(nearest)).fetchall()]


def _parameters(nearest: NearestOfAll) -> dict[str, object]:
    return {"unit": to_parameter(nearest.embedding), "limit": nearest.limit}


def _require_room(keys: Sequence[_Key], nearest: NearestOfAll) -> None:
    if nearest.view is View.HEAD or nearest.max_text_bytes is None:
        return
    if (size := sum(key.text_bytes for key in keys)) > nearest.max_text_bytes:
        raise ReplyTooLarge(count=len(keys), size=size, allowed=nearest.max_text_bytes)


# A memory deleted since is left out.
ROWS = SQL("""/* global_search.rows */
SELECT {columns}
FROM unnest(%(user_ids)s::text[], %(ids)s::uuid[]) AS found (user_id, id)
JOIN memory_entries m ON m.user_id = found.user_id AND m.id = found.id
LEFT JOIN memory_access a ON a.user_id = m.user_id AND a.id = m.id
WHERE m.deleted_at IS NULL
""")


@cache
def _rows(view: View) -> bytes:
    return ROWS.format(columns=SQL(COLUMNS[view])).as_bytes(None)


def _read(conn: Connection, keys: Sequence[_Key], view: View) -> list[Hit]:
    parameters = {"user_ids": [key.user_id for key in keys], "ids": [key.id for key in keys]}
    memories = map(from_row, conn.query(_rows(view), parameters).fetchall())
    by_key = {(memory.user_id, memory.id): memory for memory in memories}
    found = ((by_key.get((key.user_id, key.id)), key.score) for key in keys)
    return [Hit(memory, score) for memory, score in found if memory is not None]
