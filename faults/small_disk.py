"""A file system of its own that is small enough to be filled without harm to anybody."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.attempt import NotPossible

BLOCK = bytes(1 << 16)


@contextmanager
def small_disk(*, megabytes: int) -> Iterator[Path]:
    """Yields a folder on a file system of `megabytes`, in memory; unmounted afterwards.

    Raises:
        NotPossible: Where we may not mount one.
    """
    folder = Path(tempfile.mkdtemp(prefix="memory-service-faults-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "memory-service-faults", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        folder.rmdir()
        raise NotPossible("mounting a small file system takes root's rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Leaves no byte free when the block begins, and gives all back at its end."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            fill(file.fileno())
            yield
        finally:
            ballast.unlink()


def fill(descriptor: int) -> None:
    """Writes until there is no space."""
    block = BLOCK
    while block:
        try:
            os.write(descriptor, block)
        except OSError:  # ENOSPC: perhaps a smaller one still fits
            block = block[: len(block) // 2]
