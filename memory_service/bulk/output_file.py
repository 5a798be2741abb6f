"""A file being written: it appears under its name once it is complete, or not at all."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from memory_service.bulk.errors import TransferError
from memory_service.bulk.formats import STANDARD_STREAM

# What a new file may be read and written by, before the umask: temporary ones are their owner's alone.
MODE = 0o666


@contextmanager
def open_output(name: str) -> Iterator[IO[bytes]]:
    """Yields a stream to write to: standard output, or a file that takes its name in the end.

    Raises:
        TransferError: When it cannot be written.
    """
    try:
        if name == STANDARD_STREAM:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        else:
            with _renamed_at_the_end(Path(name)) as stream:
                yield stream
    except BrokenPipeError:
        # Whoever read standard output has enough; nothing more may be written there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise TransferError("the output was closed before everything was written") from None
    except OSError as error:
        raise TransferError(f"{name}: {error.strerror or error}") from None


@contextmanager
def _renamed_at_the_end(path: Path) -> Iterator[IO[bytes]]:
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        Path(part).chmod(MODE & ~_umask())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
