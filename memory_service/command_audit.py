"""Writing down in the audit log what an operator does on the command line, past the service."""

import getpass
import os
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from db import audit
from db.audit import AuditEntry
from db.errors import DatabaseError
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
    """Adds an entry: without a code before it is done, with "OK" afterwards.

    `method` is the RPC that would do the same or, where there is none, the command.

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


def written_down(database: Database, method: str, work: Callable[[], int], *, user_id: str | None = None) -> int:
    """Runs a command that changes something, and returns its exit status: with an entry before and one afterwards.

    Raises:
        DatabaseError: When these cannot be written; likewise what the command raises.
    """
    write_down(database, method, user_id=user_id)
    try:
        status = work()
    except BaseException:
        with suppress(DatabaseError):  # what has ended it matters more
            write_down(database, method, user_id=user_id, code="ABORTED")
        raise
    write_down(database, method, user_id=user_id, code="ABORTED" if status else "OK")
    return status


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in many containers
        return str(os.getuid())
