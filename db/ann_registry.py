"""Which users have an approximate index that searches may use: read every few seconds, looked up in memory."""

from dataclasses import dataclass
from datetime import datetime

from db.connection import Connection
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS

REFRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class AnnIndex:
    """A valid approximate index of one user."""

    name: str
    method: str
    """hnsw or ivfflat."""
    lists: int
    """Of ivfflat; 0 of hnsw."""


# Housekeeping, across users. An index that is being built, or whose build broke off, is not valid.
VALID = """/* ann_registry.valid */
SELECT a.user_id, a.index_name, am.amname, coalesce(
    (SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'lists'), 0
)
FROM ann_indexes a
JOIN pg_class c ON c.oid = to_regclass(quote_ident(a.index_name))
JOIN pg_index i ON i.indexrelid = c.oid
JOIN pg_am am ON am.oid = c.relam
WHERE i.indisvalid AND i.indisready AND i.indislive
"""

WANT = """/* ann_registry.want */
INSERT INTO ann_indexes (user_id, index_name, wanted_at)
VALUES (%(user_id)s, %(index_name)s, %(now)s)
ON CONFLICT DO NOTHING
"""


class AnnRegistry:
    """The valid approximate indexes, at most a few seconds old.

    A user whose index was dropped meanwhile is searched by the same statement, only slower and exactly: an index is
    a way to an answer, never the answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._indexes: dict[str, AnnIndex] = {}
        self._thread = PeriodicThread("ann-registry", self.refresh, interval_s=REFRESH_S)

    def start(self) -> None:
        """Reads the registry and keeps it fresh."""
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """Ends refreshing."""
        self._thread.close()

    def of(self, user_id: str) -> AnnIndex | None:
        """Returns the user's index, if there is a valid one."""
        return self._indexes.get(user_id)

    def refresh(self) -> None:
        """Reads the registry now."""
        self._indexes = self._database.read(self._database.call(), _valid, user_id=ACROSS_USERS)


def _valid(conn: Connection) -> dict[str, AnnIndex]:
    return {user_id: AnnIndex(*columns) for user_id, *columns in conn.query(VALID, {}).fetchall()}


def want(conn: Connection, user_id: str, index_name: str, *, now: datetime) -> None:
    """Asks maintenance for an approximate index of this user."""
    conn.query(WANT, {"user_id": user_id, "index_name": index_name, "now": now})
