"""Ending the service's sessions, which know of the embedding space that is about to go (db/embedding_space.py)."""

import time

from psycopg import errors as pg

from db.connection import Connection
from db.errors import Conflict, SchemaMismatch
from db.pool import CONNECT

# By their names: under whichever role the servers log in.
SESSIONS = """/* reembedding_sessions.sessions */
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = %(service)s AND datname = current_database() AND pid <> pg_backend_pid()
"""
LEFT = """/* reembedding_sessions.left */
SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%(pids)s) AND application_name = %(service)s
"""
# Within a transaction PostgreSQL goes on showing the sessions that it showed first.
LOOK_ANEW = "SELECT pg_stat_clear_snapshot()"

END_LIMIT_S = 2.0
LOOK_EVERY_S = 0.002


def end_sessions(conn: Connection) -> int:
    """Ends the sessions of the service, in the caller's transaction, and waits until they are gone; returns how many.

    Raises:
        SchemaMismatch: They are of a role that this one has no power over.
        Conflict: Some are still there after END_LIMIT_S.
    """
    service = CONNECT["application_name"]
    try:
        rows = conn.query(SESSIONS, {"service": service}).fetchall()
    except pg.InsufficientPrivilege as error:
        raise SchemaMismatch(
            "this role may not end the sessions of the servers; run it as the role they log in with"
        ) from error
    pids = [pid for pid, _ in rows]
    give_up_at = time.monotonic() + END_LIMIT_S
    while pids and _left(conn, pids, service):
        if time.monotonic() > give_up_at:
            raise Conflict("sessions of the service do not end: try again")
        time.sleep(LOOK_EVERY_S)
    return len(pids)


def _left(conn: Connection, pids: list[int], service: object) -> int:
    conn.execute(LOOK_ANEW)
    row = conn.query(LEFT, {"pids": pids, "service": service}).fetchone()
    return 0 if row is None else int(row[0])
