"""Says which processes use a data directory, by file locks that the kernel frees however a process ends.

flock belongs to the open file, not to the process: two users of one directory inside one process count as two.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from db.embedded.account import Account
from db.embedded.errors import EmbeddedPostgresError

log = structlog.get_logger(__name__)

POLL_S = 0.05
SAY_AFTER_S = 3.0


class SharedUse:
    """One user's share in a data directory; ends with `release` or with the process."""

    def __init__(self, path: Path, account: Account) -> None:
        self._descriptor = _open(path, account)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def is_last(self) -> bool:
        """Returns whether nobody else has a share. Call `release` afterwards: asking may give up this share."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Ends this share."""
        os.close(self._descriptor)


@contextmanager
def exclusive(path: Path, account: Account, *, timeout_s: float) -> Iterator[None]:
    """Holds the lock file `path` alone, so that one process at a time starts or stops PostgreSQL.

    Raises:
        EmbeddedPostgresError: When another process holds it longer than `timeout_s`.
    """
    descriptor = _open(path, account)
    try:
        _wait_for(descriptor, path, timeout_s)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, path: Path, timeout_s: float) -> None:
    started = time.monotonic()
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited_s = time.monotonic() - started
        else:
            return
        if waited_s > timeout_s:
            raise EmbeddedPostgresError(
                f"another process has been starting or stopping the PostgreSQL in {path.parent} for {waited_s:.0f} s"
            )
        if waited_s > SAY_AFTER_S and not said:
            said = True
            log.info("embedded_postgres_waiting_for_other_process", data_dir=str(path.parent))
        time.sleep(POLL_S)


def _open(path: Path, account: Account) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        folder = path.parent.stat()
        if folder.st_uid == os.geteuid():
            mode = stat.S_IMODE(folder.st_mode)
            raise EmbeddedPostgresError(
                f"{path.parent} or {path.name} in it may not be written, the folder's mode is {mode:04o}; "
                "set MEMORY_DATA_DIR to another folder, or chmod u+rwx this one"
            ) from None
        raise EmbeddedPostgresError(
            f"{path.parent} belongs to another user of this machine; "
            "set MEMORY_DATA_DIR to a folder of your own, or run as that user"
        ) from None
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot open {path}: {error.strerror}") from None
    if os.fstat(descriptor).st_uid != account.uid:  # only root comes here: made by root for another account
        os.fchown(descriptor, account.uid, account.gid)
    return descriptor
