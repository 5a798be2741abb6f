"""Names the fixture modules and keeps the developer's environment out of every test.

Fixtures live in modules called fix_<subject>.py; read their docstrings before writing a test.
"""

import os
import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.fix_database", "tests.fix_server"]

SCRUBBED_PREFIXES = ("MEMORY_", "OPENAI_", "PG")
SCRUBBED_NAMES = frozenset({"DATABASE_URL"})


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Lets Ctrl-C reach the processes that tests start: in the background a shell starts all with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def scrubbed_environment() -> Iterator[None]:
    """Removes the variables that the service, OpenAI's client and libpq read; set what a test needs itself."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(SCRUBBED_PREFIXES) or name in SCRUBBED_NAMES:
                patch.delenv(name)
        yield
