"""Remembering the reply to a request id, so that a repeated call changes nothing and gets the same answer (AIP-155)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.connection import Connection
from db.errors import RequestIdReused


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Names one mutating call of one user."""

    user_id: str
    request_id: UUID
    request_hash: bytes
    """SHA-256 of the method and the request: the same id with another hash is a caller's mistake."""
    expires_at: datetime


FIND = """/* requests.find */
SELECT request_hash, response FROM request_ids
WHERE user_id = %(user_id)s AND request_id = %(request_id)s AND expires_at > %(now)s
"""


def find(conn: Connection, key: RequestKey, *, now: datetime) -> bytes | None:
    """Returns the reply remembered for this request, or None.

    Raises:
        RequestIdReused: When the id was used for another request.
    """
    row = conn.query(FIND, {"user_id": key.user_id, "request_id": key.request_id, "now": now}).fetchone()
    if row is None:
        return None
    if row[0] != key.request_hash:
        raise RequestIdReused(f"request_id {key.request_id} was used before for a different request")
    response: bytes | None = row[1]
    return response


# A concurrent call with the same id waits here until the first one commits or rolls back.
CLAIM = """/* requests.claim */
WITH owner AS (
    INSERT INTO users (user_id, created_at) VALUES (%(user_id)s, %(now)s)
    ON CONFLICT DO NOTHING
)
INSERT INTO request_ids (user_id, request_id, request_hash, expires_at)
VALUES (%(user_id)s, %(request_id)s, %(request_hash)s, %(expires_at)s)
ON CONFLICT (user_id, request_id) DO UPDATE
    SET request_hash = EXCLUDED.request_hash, response = NULL, expires_at = EXCLUDED.expires_at
    WHERE request_ids.expires_at <= %(now)s
RETURNING request_id
"""

COMPLETE = """/* requests.complete */
UPDATE request_ids SET response = %(response)s
WHERE user_id = %(user_id)s AND request_id = %(request_id)s
"""


def once(conn: Connection, key: RequestKey, change: Callable[[], bytes], *, now: datetime) -> bytes:
    """Runs `change` and remembers its reply in one transaction, or returns the reply of the first time.

    A change that raises is rolled back together with its request id, so that it can be tried again.

    Raises:
        RequestIdReused: When the id was used for another request.
    """
    parameters = {
        "user_id": key.user_id,
        "request_id": key.request_id,
        "request_hash": key.request_hash,
        "expires_at": key.expires_at,
        "now": now,
    }
    with conn.transaction():
        if conn.query(CLAIM, parameters).fetchone() is None and (known := find(conn, key, now=now)) is not None:
            return known
        response = change()
        conn.query(COMPLETE, parameters | {"response": response})
        return response


PURGE = """/* requests.purge */
DELETE FROM request_ids r
USING (
    SELECT user_id, request_id FROM request_ids
    WHERE expires_at <= %(now)s
    ORDER BY expires_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) expired
WHERE r.user_id = expired.user_id AND r.request_id = expired.request_id
"""


def purge(conn: Connection, *, now: datetime, limit: int) -> int:
    """Forgets up to `limit` request ids that have expired; returns how many."""
    return conn.query(PURGE, {"now": now, "limit": limit}).rowcount
