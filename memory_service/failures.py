"""How a command fails: errors that its user can mend take one line, and only defects a traceback."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from db.errors import DatabaseError
from memory_service.addresses import AddressError
from memory_service.bulk.errors import TransferError
from memory_service.certificates import CertificateError
from memory_service.config import ConfigurationError
from memory_service.embedding.errors import EmbeddingError

FAILED = 1
MISUSED = 2
CUT_OFF = 3
"""A server stopped as asked, but not all calls could end."""
INTERRUPTED = 130
UNREAD = 141
"""Whoever read the output has left; the status of a program that SIGPIPE ended."""


def exit_status_of(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status, having told standard error why it failed."""
    try:
        status = command()
        sys.stdout.flush()  # here, where a failure is understood, not while the interpreter ends
    except ConfigurationError as error:
        complain(f"the configuration is not usable:\n{_indented(str(error))}")
        return MISUSED
    except (AddressError, CertificateError, DatabaseError, EmbeddingError, TransferError) as error:
        complain(str(error))
        return FAILED
    except BrokenPipeError:
        _forget_output()
        return UNREAD
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _forget_output() -> None:
    # What is still buffered would fail again when the interpreter ends.
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - not a path of ours
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def complain(message: str) -> None:
    """Tells standard error."""
    sys.stderr.write(f"memory-service: {message}\n")


def end_process(status: int) -> NoReturn:
    """Ends the process; at once where a call was cut off: its thread may hang, and the interpreter waits for that."""
    if status == CUT_OFF:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _indented(lines: str) -> str:
    return "\n".join(f"  {line}" for line in lines.splitlines())
