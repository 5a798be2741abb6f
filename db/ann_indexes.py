"""Builds, replaces and drops approximate indexes, without keeping anybody from reading or writing meanwhile."""

import dataclasses
from dataclasses import dataclass
from typing import Literal as OneOf

from psycopg.sql import SQL, Composable, Identifier, Literal

from db.ann_catalog import NEW, IndexInfo, list_indexes
from db.ann_registry import REFRESH_S
from db.ann_session import AnnSession
from db.connection import Connection

Method = OneOf["hnsw", "ivfflat"]

MAX_DIMENSIONS = 4_000
"""pgvector's limit for an approximate index on halfvec."""
MAX_LISTS = 32_768
ROWS_PER_LIST = 1_000
"""pgvector's advice for up to a million rows."""
OUTGROWN = 4
"""How many times too many or too few lists there may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """How approximate indexes are built."""

    method: Method = "hnsw"
    hnsw_m: int = 16
    hnsw_ef_construction: int = 200
    ivfflat_lists: int = 0
    """0: one for every ROWS_PER_LIST memories."""

    def parameters(self, rows: int) -> dict[str, int]:
        """Returns the index parameters for so many memories."""
        if self.method == "hnsw":
            return {"m": self.hnsw_m, "ef_construction": self.hnsw_ef_construction}
        automatic = min(MAX_LISTS, max(1, rows // ROWS_PER_LIST))
        return {"lists": self.ivfflat_lists or automatic}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """An index to be built."""

    name: str
    user_id: str | None
    """None: across users."""
    rows: int
    """Memories it will hold, roughly."""
    options: IndexOptions
    parallel: bool = True
    """Off after a build ran out of space, which may have been the shared memory of parallel workers."""
    column: str = "embedding"
    """What is indexed."""


CREATE = SQL("""/* ann_indexes.create */
CREATE INDEX CONCURRENTLY {name} ON memory_entries USING {method} ({column} halfvec_cosine_ops)
WITH ({parameters}) WHERE {predicate}
""")

DROP = SQL("/* ann_indexes.drop */ DROP INDEX CONCURRENTLY IF EXISTS {name}")

# Takes a lock that readers and writers do not mind.
RENAME = SQL("/* ann_indexes.rename */ ALTER INDEX {name} RENAME TO {new_name}")

# In the database, where a cancel request ends it too.
PAUSE = SQL("/* ann_indexes.pause */ SELECT pg_sleep({})")

FORGET = "/* ann_indexes.forget */ DELETE FROM ann_indexes WHERE user_id = %(user_id)s"

SERIAL = SQL("SET max_parallel_maintenance_workers = 0")
PARALLEL = SQL("RESET max_parallel_maintenance_workers")

# Until every process has noticed that an index is gone.
SETTLE_S = 2 * REFRESH_S

LIVE = SQL("deleted_at IS NULL")
OF_USER = SQL("user_id = {user_id} AND deleted_at IS NULL")


def create(session: AnnSession, blueprint: Blueprint) -> None:
    """Builds an index; interrupted, it leaves an invalid one that costs every write and has to be dropped.

    Raises:
        DatabaseError: See AnnSession.run.
    """
    parameters = blueprint.options.parameters(blueprint.rows)
    statement = CREATE.format(
        name=Identifier(blueprint.name),
        method=Identifier(blueprint.options.method),
        column=Identifier(blueprint.column),
        parameters=SQL(", ").join(
            SQL("{} = {}").format(Identifier(name), Literal(value)) for name, value in parameters.items()
        ),
        predicate=_predicate(blueprint.user_id),
    )
    session.run(PARALLEL if blueprint.parallel else SERIAL)
    session.run(statement)


def _predicate(user_id: str | None) -> Composable:
    return LIVE if user_id is None else OF_USER.format(user_id=Literal(user_id))


def replace(session: AnnSession, blueprint: Blueprint) -> None:
    """Builds an index anew; of the same method, while searches go on using the old one.

    Not by REINDEX CONCURRENTLY: that keeps the parameters, and changing them by ALTER INDEX locks out every search of
    the table. Between two methods searches do without: the depth they set is that of the method they know of, and an
    IVFFlat index searched with HNSW's has one probe, recall 0.5.
    """
    there = {index.name: index.method for index in session.query(list_indexes)}
    if there.get(blueprint.name) not in {None, blueprint.options.method}:
        drop(session, blueprint.name)
        session.run(PAUSE.format(SETTLE_S))
        create(session, blueprint)
        return
    new_name = blueprint.name + NEW
    drop(session, new_name)
    create(session, dataclasses.replace(blueprint, name=new_name))
    drop(session, blueprint.name)
    session.run(RENAME.format(name=Identifier(new_name), new_name=Identifier(blueprint.name)))


def drop(session: AnnSession, name: str) -> None:
    """Drops an index, whatever its state; does nothing when there is none."""
    session.run(DROP.format(name=Identifier(name)))


def forget(conn: Connection, user_id: str) -> None:
    """Ends the wish for an index of this user; the index itself, if any, is then nobody's."""
    conn.query(FORGET, {"user_id": user_id})


def suits(index: IndexInfo, options: IndexOptions, rows: int) -> bool:
    """Tells whether an index may stay as it is, now that it has to serve so many memories.

    Other parameters of HNSW are no reason to build anew: two servers of different settings would never stop. A number
    of lists that was right for another size is: it multiplies what a search reads.
    """
    if index.method != options.method:
        return False
    lists = index.options.get("lists")
    if lists is None or options.ivfflat_lists:
        return True
    return lists / OUTGROWN <= options.parameters(rows)["lists"] <= lists * OUTGROWN
