"""Waiting for what happens soon, but not at once."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Returns once `condition` holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.03)
