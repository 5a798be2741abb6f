"""Ending a move to another embedding model: the standby columns and their indexes go, and with them the way back."""

import time

import structlog
from psycopg import errors as pg
from psycopg.sql import Identifier

from db import reembedding_columns
from db.ann_session import AnnSession
from db.connection import Connection
from db.errors import Conflict
from db.reembedding_indexes import DROP, OnProgress, is_standby, valid_indexes, working
from db.reembedding_state import AS_OWNER, IMPATIENT, LOCK, LOCK_TIMEOUT, require_reembedding

log = structlog.get_logger(__name__)

ATTEMPTS = 5
PAUSE_S = 1.0

END = "/* reembedding_cleanup.end */ DELETE FROM reembedding"


def clean_up(url: str, *, on_progress: OnProgress) -> None:
    """Drops what the standby embeddings take; before a switch that cancels the move. May be run again after a failure.

    The columns vanish at once, their bytes in a row when the row is next written.

    Raises:
        ReembeddingConflict: When no move is under way.
        Conflict: Other transactions were in the way each time; run it again.
    """
    with (
        AnnSession(url) as session,
        working(session, on_wait=lambda: on_progress("waiting for another index to be built", 0.0)),
    ):
        session.query(require_reembedding)
        names = [name for name in session.query(valid_indexes) if is_standby(name)]
        for number, name in enumerate(names):
            on_progress(name, number / (len(names) + 1))
            session.run(DROP.format(name=Identifier(name)))
        on_progress("memory_entries", len(names) / (len(names) + 1))
        _drop_columns(session)
        on_progress("memory_entries", 1.0)
    log.info("reembedding_cleaned_up")


def _drop_columns(session: AnnSession) -> None:
    for _ in range(ATTEMPTS - 1):
        try:
            return session.query(_end)
        except Conflict:
            time.sleep(PAUSE_S)  # those who waited behind this one go first
    return session.query(_end)


def _end(conn: Connection) -> None:
    try:
        with conn.transaction():
            conn.execute(AS_OWNER)
            conn.execute(IMPATIENT.format(LOCK_TIMEOUT))
            conn.execute(LOCK)
            move = require_reembedding(conn)
            for command in reembedding_columns.dropped(live_dimensions=move.live.dimensions):
                conn.execute(command)
            conn.execute(END)
    except pg.LockNotAvailable as error:
        raise Conflict(f"other transactions kept the table of memories for {LOCK_TIMEOUT}: run it again") from error
