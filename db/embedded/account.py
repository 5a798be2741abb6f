"""Chooses the operating-system account the embedded PostgreSQL runs under, and lets it reach its files.

PostgreSQL refuses to run as root. For root it runs as the owner of the data, or else as the account `pgserver`,
which is created when missing.
"""

import os
import pwd
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from db.embedded.errors import EmbeddedPostgresError

log = structlog.get_logger(__name__)

ROOT = 0
ACCOUNT_FOR_ROOT = "pgserver"
OWNER_TO_OTHERS = 6  # bits between the owner's permissions and everyone else's


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system account by its numbers."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Whether it is not the account of this process."""
        return self.uid != os.geteuid()


def choose(*folders: Path) -> Account:
    """Returns the account to run PostgreSQL under, given the folders of its data, the innermost first.

    Raises:
        EmbeddedPostgresError: When this process is root and there is no account for PostgreSQL nor a way to make one.
    """
    if os.geteuid() != ROOT:
        return Account(os.geteuid(), os.getegid())
    for folder in folders:
        if folder.exists() and folder.stat().st_uid != ROOT:
            return Account(folder.stat().st_uid, folder.stat().st_gid)
    with suppress(KeyError):
        return _account_named(ACCOUNT_FOR_ROOT)
    command = ["useradd", "--system", "--user-group", "--shell", "/usr/sbin/nologin", ACCOUNT_FOR_ROOT]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - a fixed command line
        return _account_named(ACCOUNT_FOR_ROOT)
    except (OSError, subprocess.CalledProcessError, KeyError):
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root, and the account {ACCOUNT_FOR_ROOT!r} to run it under could not be "
            f"created; run as an ordinary user, or create it: {' '.join(command)}"
        ) from None


def let_reach(account: Account, path: Path) -> None:
    """Lets `account` pass through the folders above `path`, by adding the search permission where it is missing.

    Search permission alone: what is in those folders stays hidden from others.
    """
    if not account.is_other:
        return
    for folder in path.resolve().parents:
        status = folder.stat()
        needed = _search_bit(account, status)
        if not status.st_mode & needed:
            log.warning("embedded_postgres_opened_folder", folder=str(folder), added="search permission")
            folder.chmod(stat.S_IMODE(status.st_mode) | needed)


def let_execute(account: Account, installation: Path) -> None:
    """Lets `account` read and run the PostgreSQL in `installation`; a strict umask at installation denies it."""
    let_reach(account, installation / "bin")
    if account.is_other and not (installation / "bin" / "postgres").stat().st_mode & stat.S_IXOTH:
        for path in (installation, *installation.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (mode & (stat.S_IRUSR | stat.S_IXUSR)) >> OWNER_TO_OTHERS)


def give(account: Account, path: Path) -> None:
    """Makes `account` the owner of `path`."""
    if account.is_other:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _account_named(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid)


def _search_bit(account: Account, status: os.stat_result) -> int:
    if status.st_uid == account.uid:
        return stat.S_IXUSR
    return stat.S_IXGRP if status.st_gid == account.gid else stat.S_IXOTH
