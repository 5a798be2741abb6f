"""Chooses the folder of the embedded PostgreSQL's socket, and keeps it private.

The socket is the only way in, and whoever reaches it is trusted.
"""

import hashlib
import os
import stat
from pathlib import Path

from db.embedded.account import Account, give
from db.embedded.errors import EmbeddedPostgresError
from db.embedded.postmaster import SOCKET_NAME

# sun_path holds 108 bytes on Linux and 104 on macOS, with the NUL at the end.
LONGEST_SOCKET_PATH = 103
# Characters with a meaning in unix_socket_directories or in a URL's list of hosts.
AWKWARD = frozenset(",\"'\\\n\r")
# Not TMPDIR: every process has to find the same folder.
FALLBACK_PARENT = Path("/tmp")  # noqa: S108 - a folder in it is made private and checked to be ours


def choose_socket_dir(cluster: Path, account: Account) -> Path:
    """Returns the cluster's folder, which is private already, or one in /tmp where that has too long a path."""
    text = str(cluster)
    if len(os.fsencode(cluster / SOCKET_NAME)) <= LONGEST_SOCKET_PATH and not AWKWARD.intersection(text):
        return cluster
    digest = hashlib.sha256(os.fsencode(cluster)).hexdigest()[:12]
    return FALLBACK_PARENT / f"memory-service-{account.uid}-{digest}"


def prepare_socket_dir(folder: Path, account: Account) -> None:
    """Makes `folder` when missing, for `account` alone.

    Raises:
        EmbeddedPostgresError: When it exists and is not the account's private folder: someone else who can write to
            it could put a socket of his own in the server's place.
    """
    try:
        folder.mkdir(mode=0o700)
        give(account, folder)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != account.uid or status.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"{folder} is needed for PostgreSQL's socket but is not a private folder of user id {account.uid}; "
                "remove it, or set MEMORY_DATA_DIR to a shorter path"
            ) from None
