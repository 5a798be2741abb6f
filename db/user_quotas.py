"""What single users may store, where that is not what all users may: set by operators, read with each user's usage."""

from dataclasses import dataclass
from datetime import datetime

from db.connection import Connection

# bigint
MAX_AMOUNT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UserQuota:
    """One user's own quota. None: as much as all users may, 0: any amount."""

    memories: int | None = None
    bytes: int | None = None


READ = "/* user_quotas.read */ SELECT memories, bytes FROM user_quotas WHERE user_id = %(user_id)s"


def read(conn: Connection, user_id: str) -> UserQuota:
    """Returns the user's own quota."""
    row = conn.query(READ, {"user_id": user_id}).fetchone()
    return UserQuota() if row is None else UserQuota(memories=row[0], bytes=row[1])


# A user may get one before it has stored anything. As any other row of a user, it waits for an erasure under way.
OWN = """/* user_quotas.own */
INSERT INTO users (user_id, created_at) VALUES (%(user_id)s, %(now)s) ON CONFLICT DO NOTHING
"""

WRITE = """/* user_quotas.write */
INSERT INTO user_quotas (user_id, memories, bytes) VALUES (%(user_id)s, %(memories)s, %(bytes)s)
ON CONFLICT (user_id) DO UPDATE SET memories = EXCLUDED.memories, bytes = EXCLUDED.bytes
"""

RESET = "/* user_quotas.reset */ DELETE FROM user_quotas WHERE user_id = %(user_id)s"


def write(conn: Connection, user_id: str, quota: UserQuota, *, now: datetime) -> None:
    """Gives the user a quota of its own, in place of the one that it had."""
    parameters = {"user_id": user_id, "memories": quota.memories, "bytes": quota.bytes, "now": now}
    if quota == UserQuota():
        conn.query(RESET, parameters)
        return
    with conn.transaction():
        conn.query(OWN, parameters)
        conn.query(WRITE, parameters)


ANY = "/* user_quotas.any */ SELECT EXISTS (SELECT FROM user_quotas)"


def exist(conn: Connection) -> bool:
    """Returns whether any user has a quota of its own."""
    row = conn.query(ANY, {}).fetchone()
    return row is not None and bool(row[0])
