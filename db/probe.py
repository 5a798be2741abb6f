"""Whether the database can be worked with right now, asked over a connection of its own, and answered in time.

Not over the pool: a busy pool says nothing about the database. And with deadlines kept on this side: a server that is
frozen, or gone without a word, honours no statement_timeout.
"""

import select
import time

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from db.errors import DatabaseUnavailable, SchemaMismatch

# transaction_read_only is on for a standby, and for a primary that was demoted.
READY = b"""/* probe.ready */
SELECT max(version_num), current_setting('transaction_read_only') FROM alembic_version
"""


class Probe:
    """Asks one database, again and again."""

    def __init__(self, url: str, *, revision: str, deadline_s: float = 1.0) -> None:
        """Prepares to ask whether `url` is at `revision` or a later one: servers outlive a migration."""
        self._url = url
        self._revision = revision
        self._deadline_s = deadline_s
        self._conn: psycopg.Connection | None = None

    def check(self) -> None:
        """Returns when the database answers, accepts writes and has the schema.

        Raises:
            DatabaseUnavailable: When it does not answer within the deadline, or is read-only.
            SchemaMismatch: When its schema is older than needed.
        """
        try:
            revision, read_only = self._answer()
        except psycopg.errors.UndefinedTable:
            raise SchemaMismatch("the database has no schema; run: memory-service migrate") from None
        except psycopg.Error as error:
            self.close()
            raise DatabaseUnavailable("the database cannot be reached") from error
        except TimeoutError:
            self.close()
            raise DatabaseUnavailable(f"the database did not answer within {self._deadline_s:g} s") from None
        if not revision.isdigit() or int(revision) < int(self._revision):
            raise SchemaMismatch("the database schema is older than this version needs; run: memory-service migrate")
        if read_only != "off":
            raise DatabaseUnavailable("the database does not accept writes")

    def close(self) -> None:
        """Closes the connection."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _answer(self) -> tuple[str, str]:
        if self._conn is not None:
            try:
                return self._ask(self._conn)
            except psycopg.OperationalError:
                # Sessions end for other reasons than that the database is down.
                self.close()
        # 2 s is the least that libpq and psycopg accept.
        self._conn = psycopg.connect(
            self._url, autocommit=True, connect_timeout=2, application_name="memory-service health"
        )
        return self._ask(self._conn)

    def _ask(self, conn: psycopg.Connection) -> tuple[str, str]:
        conn.pgconn.send_query(READY)
        result = _last_result(conn.pgconn, deadline_at=time.monotonic() + self._deadline_s)
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise error_from_result(result)
        revision, read_only = ((result.get_value(0, column) or b"").decode() for column in range(2))
        return revision, read_only


def _last_result(pgconn: pq.abc.PGconn, *, deadline_at: float) -> pq.abc.PGresult:
    """Returns the result of the query sent; raises TimeoutError when it is not there in time."""
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    pgconn.flush()
    last: pq.abc.PGresult | None = None
    while True:
        while pgconn.is_busy():
            remaining_s = deadline_at - time.monotonic()
            if remaining_s <= 0 or not poll.poll(remaining_s * 1_000):
                raise TimeoutError
            pgconn.consume_input()
        if (result := pgconn.get_result()) is None:
            if last is None:
                raise psycopg.OperationalError("the connection is lost")
            return last
        last = result
