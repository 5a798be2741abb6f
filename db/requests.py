"""Remembering the reply to a request id, so that a repeated call changes nothing and gets the same answer (AIP-155).

Calls of users are remembered among the user's rows, which go with the user; those of operators apart from them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRequestKey:
    """Names one mutating call of an operator, whichever user it is about."""

    request_id: UUID
    request_hash: bytes
    expires_at: datetime


AnyKey = RequestKey | OperatorRequestKey


FIND = """/* requests.find */
SELECT request_hash, response FROM request_ids
WHERE user_id = %(user_id)s AND request_id = %(request_id)s AND expires_at > %(now)s
"""


FIND_OPERATORS = """/* requests.find_operators */
SELECT request_hash, response FROM operator_requests WHERE request_id = %(request_id)s AND expires_at > %(now)s
"""


def find(conn: Connection, key: AnyKey, *, now: datetime) -> bytes | None:
    """Returns the reply remembered for this request, or None.

    Raises:
        RequestIdReused: When the id was used for another request.
    """
    row = conn.query(_of(key).find, _parameters(key, now)).fetchone()
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

CLAIM_OPERATORS = """/* requests.claim_operators */
INSERT INTO operator_requests (request_id, request_hash, expires_at)
VALUES (%(request_id)s, %(request_hash)s, %(expires_at)s)
ON CONFLICT (request_id) DO UPDATE
    SET request_hash = EXCLUDED.request_hash, response = NULL, expires_at = EXCLUDED.expires_at
    WHERE operator_requests.expires_at <= %(now)s
RETURNING request_id
"""

COMPLETE = """/* requests.complete */
UPDATE request_ids SET response = %(response)s
WHERE user_id = %(user_id)s AND request_id = %(request_id)s
"""

COMPLETE_OPERATORS = """/* requests.complete_operators */
UPDATE operator_requests SET response = %(response)s WHERE request_id = %(request_id)s
"""


@dataclass(frozen=True, slots=True)
class _Statements:
    find: LiteralString
    claim: LiteralString
    complete: LiteralString


_OF_USERS = _Statements(FIND, CLAIM, COMPLETE)
_OF_OPERATORS = _Statements(FIND_OPERATORS, CLAIM_OPERATORS, COMPLETE_OPERATORS)


def _of(key: AnyKey) -> _Statements:
    return _OF_USERS if isinstance(key, RequestKey) else _OF_OPERATORS


def _parameters(key: AnyKey, now: datetime) -> dict[str, Any]:
    parameters = {
        "request_id": key.request_id,
        "request_hash": key.request_hash,
        "expires_at": key.expires_at,
        "now": now,
    }
    return parameters | {"user_id": key.user_id} if isinstance(key, RequestKey) else parameters


def once(conn: Connection, key: AnyKey, change: Callable[[], bytes], *, now: datetime) -> bytes:
    """Runs `change` and remembers its reply in one transaction, or returns the reply of the first time.

    A change that raises is rolled back together with its request id, so that it can be tried again.

    Raises:
        RequestIdReused: When the id was used for another request.
    """
    statements, parameters = _of(key), _parameters(key, now)
    with conn.transaction():
        is_new = conn.query(statements.claim, parameters).fetchone() is not None
        if not is_new and (known := find(conn, key, now=now)) is not None:
            return known
        response = change()
        conn.query(statements.complete, parameters | {"response": response})
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


PURGE_OPERATORS = """/* requests.purge_operators */
DELETE FROM operator_requests r
USING (
    SELECT request_id FROM operator_requests
    WHERE expires_at <= %(now)s
    ORDER BY expires_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) expired
WHERE r.request_id = expired.request_id
"""


def purge(conn: Connection, *, now: datetime, limit: int) -> int:
    """Forgets up to `limit` request ids of users that have expired, and as many of operators; returns how many."""
    parameters = {"now": now, "limit": limit}
    return conn.query(PURGE, parameters).rowcount + conn.query(PURGE_OPERATORS, parameters).rowcount
