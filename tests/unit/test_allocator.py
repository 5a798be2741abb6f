"""The allocator keeps little of what is freed, unless somebody has decided otherwise."""

import ctypes
import subprocess
import sys

import pytest

from memory_service.allocator import ARENAS

# Sixteen threads at work at the same time; malloc_info(3) tells of each arena as a heap.
PROGRAM = """
import ctypes, sys, threading
from memory_service.allocator import keep_little_freed_memory

sys.stderr.write(f"{keep_little_freed_memory()}\\n")
together = threading.Barrier(16)

def work():
    kept = [bytes(10_000) for _ in range(20)]
    together.wait(10)

threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(stream))
libc.fflush(ctypes.c_void_p(stream))
"""


def run(**environment: str) -> tuple[str, int]:
    """Returns what `keep_little_freed_memory` returned, and how many arenas there were in the end."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stderr.strip(), result.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="glibc's own")
def test_threads_share_few_arenas() -> None:
    assert run() == ("True", ARENAS)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="glibc's own")
def test_what_an_operator_has_set_stays() -> None:
    assert run(MALLOC_ARENA_MAX="4") == ("False", 4)
