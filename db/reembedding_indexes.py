"""The indexes of standby embeddings: a counterpart of each index of the live ones, built before they are searched.

A counterpart has the name of the live index and `_standby` behind it, which no other module takes for one of its own. A
build that was interrupted left an invalid one, which is dropped and built anew.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from psycopg.sql import SQL, Composed, Identifier

from db import ann_indexes
from db.ann_catalog import PREFIX, IndexInfo, IndexState, list_indexes
from db.ann_indexes import MAX_DIMENSIONS, Blueprint, IndexOptions
from db.ann_session import AnnLock, AnnSession
from db.connection import Connection
from db.errors import Conflict
from db.reembedding_columns import STANDBY_CHECK
from db.reembedding_state import Reembedding, require_reembedding
from db.search_plan import Coarse, coarse_of
from db.wall import ACROSS_USERS

SUFFIX = "_standby"
SEARCH = "memory_entries_search"
UNEMBEDDED = "memory_entries_unembedded"
"""Of the memories without an embedding of their present content: the last rounds and the switch read no others."""

OnProgress = Callable[[str, float], None]
"""Is told what is being done, and which share of it is done, 0 to 1."""

# As in migration 0004.
CREATE_SEARCH = SQL("""/* reembedding_indexes.search */
CREATE INDEX CONCURRENTLY {name} ON memory_entries (user_id)
    INCLUDE (id, importance, conversation_key, created_at, {vector})
    WHERE deleted_at IS NULL AND standby_embedding IS NOT NULL
""")
VECTORS = {Coarse.EMBEDDING: SQL("standby_embedding_norm, standby_embedding"), Coarse.SIGNS: SQL("standby_bits")}

# One of each family, since the switch changes their places.
CREATE_UNEMBEDDED = SQL("""/* reembedding_indexes.unembedded */
CREATE INDEX CONCURRENTLY {name} ON memory_entries (user_id, id) WHERE {embedding} IS NULL OR standby_stale
""")

DROP = SQL("/* reembedding_indexes.drop */ DROP INDEX CONCURRENTLY IF EXISTS {name}")

VALIDATE = SQL("/* reembedding_indexes.validate */ ALTER TABLE memory_entries VALIDATE CONSTRAINT {}")

# The back-fill has written every row anew. Searches by an index alone need the map of visible rows, and no others the
# dead entries in indexes cleaned up now, which takes many times as long: that is left to autovacuum.
VACUUM = SQL("""/* reembedding_indexes.vacuum */
VACUUM (ANALYZE, INDEX_CLEANUP OFF, TRUNCATE OFF, SKIP_LOCKED) memory_entries
""")

NAMES = """/* reembedding_indexes.names */
SELECT c.relname, i.indisvalid AND i.indisready AND i.indislive
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass('memory_entries')
"""

# A build scans the table, sorts or links what it found, and scans the table once more.
HOW_FAR = """/* reembedding_indexes.how_far */
SELECT phase, coalesce(tuples_done / nullif(tuples_total, 0)::float8, blocks_done / nullif(blocks_total, 0)::float8, 0)
FROM pg_stat_progress_create_index
WHERE relid = to_regclass('memory_entries') AND datname = current_database()
"""
BUILDING = "building index"
BUILDING_SHARE = 0.9

LOOK_EVERY_S = 0.25
LOCK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class _Task:
    """One thing to do, and the index that is then there."""

    name: str
    run: Callable[[AnnSession], None]


def build_indexes(url: str, *, on_progress: OnProgress, build_memory_mb: int | None = None) -> None:
    """Builds what the standby embeddings need to be searched, while everybody goes on reading and writing.

    Waits, however long it takes, while another index is built. May be interrupted and run again at any time.

    Raises:
        ReembeddingConflict: When no move is under way.
        DatabaseError: A build failed; run it again when the reason is gone.
    """
    with (
        AnnSession(url, build_memory_mb=build_memory_mb) as session,
        AnnSession(url) as onlooker,
        working(session, on_wait=lambda: on_progress("waiting for another index to be built", 0.0)),
    ):
        for task in _tasks(session, session.query(require_reembedding)):
            _follow(task, session, onlooker, on_progress)


@contextmanager
def working(session: AnnSession, *, on_wait: Callable[[], None], limit_s: float = float("inf")) -> Iterator[None]:
    """Holds the lock of whoever builds or drops indexes.

    Raises:
        Conflict: When somebody else held it for `limit_s`.
    """
    give_up_at = time.monotonic() + limit_s
    while not session.try_lock(AnnLock.WORK):
        if time.monotonic() >= give_up_at:
            raise Conflict("an index is being built; try again when it is there (see: memory-service index list)")
        on_wait()
        time.sleep(LOCK_EVERY_S)
    try:
        yield
    finally:
        if not session.closed:
            session.unlock(AnnLock.WORK)


def valid_indexes(conn: Connection) -> dict[str, bool]:
    """Returns the names of all indexes of memories, and whether each can be used."""
    return dict(conn.query(NAMES, {}).fetchall())


def missing_indexes(conn: Connection, move: Reembedding) -> list[str]:
    """Returns the indexes without which the standby embeddings cannot take the place of the live ones."""
    needed = [UNEMBEDDED, UNEMBEDDED + SUFFIX]
    if coarse_of(move.standby.dimensions) in VECTORS:
        needed.append(SEARCH + SUFFIX)
    there = valid_indexes(conn)
    return [name for name in needed if not there.get(name, False)]


def is_standby(name: str) -> bool:
    """Tells whether an index is one of a move's: of standby embeddings, or of the memories that lack one."""
    base = name.removesuffix(SUFFIX)
    return name == UNEMBEDDED or (name != base and (base in {SEARCH, UNEMBEDDED} or base.startswith(PREFIX)))


def _tasks(session: AnnSession, move: Reembedding) -> list[_Task]:
    """Returns what is still to be done."""
    there = session.query(valid_indexes)
    wanted = [*_of_the_table(move), *_approximate(session, move)]
    names = {task.name for task in wanted}
    orphans = [name for name in there if is_standby(name) and name not in names]
    return [
        *(_Task(name, partial(_drop, name=name)) for name in orphans),
        _Task(STANDBY_CHECK, lambda at: at.run(VALIDATE.format(Identifier(STANDBY_CHECK)))),
        *(task for task in wanted if not there.get(task.name, False)),
        _Task("memory_entries", lambda at: at.run(VACUUM)),
    ]


def _of_the_table(move: Reembedding) -> Iterator[_Task]:
    for name, column in (UNEMBEDDED, "embedding"), (UNEMBEDDED + SUFFIX, "standby_embedding"):
        yield _created(name, CREATE_UNEMBEDDED.format(name=Identifier(name), embedding=Identifier(column)))
    if (vector := VECTORS.get(coarse_of(move.standby.dimensions))) is not None:
        name = SEARCH + SUFFIX
        yield _created(name, CREATE_SEARCH.format(name=Identifier(name), vector=vector))


def _created(name: str, command: Composed) -> _Task:
    def create(session: AnnSession) -> None:
        _drop(session, name)
        session.run(command)

    return _Task(name, create)


def _approximate(session: AnnSession, move: Reembedding) -> Iterator[_Task]:
    if move.standby.dimensions > MAX_DIMENSIONS:
        return
    for index in session.query(list_indexes, user_id=ACROSS_USERS):
        if index.state is IndexState.READY and not index.is_leftover and (index.is_global or index.user_id is not None):
            blueprint = _counterpart(index)
            yield _Task(blueprint.name, partial(_create_approximate, blueprint=blueprint))


def _counterpart(index: IndexInfo) -> Blueprint:
    defaults = IndexOptions()
    options = IndexOptions(
        method="ivfflat" if index.method == "ivfflat" else "hnsw",
        hnsw_m=index.options.get("m", defaults.hnsw_m),
        hnsw_ef_construction=index.options.get("ef_construction", defaults.hnsw_ef_construction),
        ivfflat_lists=index.options.get("lists", defaults.ivfflat_lists),
    )
    return Blueprint(
        name=index.name + SUFFIX,
        user_id=index.user_id,
        rows=index.entries,
        options=options,
        column="standby_embedding",
    )


def _create_approximate(session: AnnSession, blueprint: Blueprint) -> None:
    _drop(session, blueprint.name)
    ann_indexes.create(session, blueprint)


def _drop(session: AnnSession, name: str) -> None:
    session.run(DROP.format(name=Identifier(name)))


def _follow(task: _Task, session: AnnSession, onlooker: AnnSession, on_progress: OnProgress) -> None:
    """Does it in a thread, telling meanwhile how far it is; cancels it where that is interrupted."""
    share = 0.0
    on_progress(task.name, share)
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(task.run, session)
        try:
            while wait([work], LOOK_EVERY_S).not_done:
                share = max(share, onlooker.query(_how_far))
                on_progress(task.name, share)
        except BaseException:
            while not work.done():  # again and again: a request that arrives between two statements stops neither
                session.cancel()
                wait([work], LOOK_EVERY_S)
            raise
        work.result()
    on_progress(task.name, 1.0)


def _how_far(conn: Connection) -> float:
    row = conn.query(HOW_FAR, {}).fetchone()
    if row is None:
        return 0.0
    phase, share = row
    if phase.startswith(BUILDING):
        return BUILDING_SHARE * min(1.0, float(share))
    return 0.0 if phase.startswith("waiting for writers") else BUILDING_SHARE
