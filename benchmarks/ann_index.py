"""Builds the approximate indexes of large users, by the command that operators use."""

import subprocess
import sys
import time
from collections.abc import Iterable

from benchmarks.progress import say
from benchmarks.scale import Scale
from benchmarks.tables import Table
from harness.service_process import environment

MIN_ROWS = 20_000
"""The setting's default. Smaller scales set it to the size of their large user."""
# As MEMORY_ANN_BUILD_MEMORY_MB advises: 700 bytes a memory and 2 bytes a dimension, with some room.
GRAPH_BYTES = 1_000
MIB = 1_048_576
LEAST_MEMORY_MB = 64


def settings(scale: Scale) -> dict[str, int]:
    """Returns the settings under which the scale's large user has earned an index."""
    rows = min(MIN_ROWS, scale.large_user)
    return {"ann_min_rows": rows, "ann_drop_rows": rows // 2}


def build(table: Table, users: Iterable[str], scale: Scale) -> dict[str, float]:
    """Builds the indexes of users one after the other, and returns the seconds each took, by user.

    An index that is there already takes no time worth speaking of.

    Raises:
        RuntimeError: When the command fails; the message holds what it said.
    """
    took: dict[str, float] = {}
    sizes = {user.name: user.size for user in table.collection.users}
    for user in users:
        dimensions = table.collection.dimensions
        memory_mb = max(LEAST_MEMORY_MB, sizes[user] * (GRAPH_BYTES + 2 * dimensions) // MIB)
        say(f"building the index of {sizes[user]:,} memories")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "memory_service", "index", "create", "--user", user],
            env=environment(table.url, dimensions=dimensions, ann_build_memory_mb=memory_mb, **settings(scale)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"no index for {user}:\n{done.stdout}")
        took[user] = time.monotonic() - began
    return took
