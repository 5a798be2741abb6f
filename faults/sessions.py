"""The service's connections as PostgreSQL sees them: those of all its processes, whichever of them one could ask."""

import psycopg

from db.pool import CONNECT

SESSIONS = """
SELECT count(*), count(*) FILTER (WHERE state = 'idle') FROM pg_stat_activity
WHERE datname = current_database() AND application_name = %s
"""


def pool_of_all(database_url: str) -> dict[str, int]:
    """Returns how many connections the service's pools have, and how many of them do nothing: size, available."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(SESSIONS, [CONNECT["application_name"]]).fetchone()
    size, available = row or (0, 0)
    return {"size": size, "available": available}
