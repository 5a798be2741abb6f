"""Writing down in the audit log what an operator does on the command line, past the service."""

import getpass
import os
import random
from datetime import UTC, datetime
from uuid import UUID

from db import audit
from db.audit import AuditEntry
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.access.audit import key_id_in


def write_down(
    database: Database,
    method: str,
    *,
    user_id: str | None = None,
    key_id: str | None = None,
    memory_count: int = 0,
    code: str | None = None,
) -> None:
    """Adds an entry for the RPC that would do the same: without a code before it is done, with "OK" afterwards.

    Raises:
        DatabaseError: When it cannot be written.
    """
    entry = AuditEntry(
        at=datetime.now(UTC),
        id=UUID(int=random.getrandbits(128)),
        subject=f"cli:{_account()}",
        method=method,
        user_id=user_id,
        memory_count=memory_count,
        key_id=None if key_id is None else key_id_in(key_id),
        code=code,
    )
    database.write(database.call(), lambda conn: audit.write(conn, [entry]), user_id=ACROSS_USERS)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in many containers
        return str(os.getuid())
