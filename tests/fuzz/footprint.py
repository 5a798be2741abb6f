"""What a service's processes take: memory and threads."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

MIB = 1 << 20
HEAP_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Footprint:
    """What they take at a moment."""

    rss_bytes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.rss_bytes / MIB:.0f} MiB, {self.threads} threads"


def footprint_of(pid: int) -> Footprint:
    """Returns what a service takes, its workers included and its PostgreSQL left out."""
    service = psutil.Process(pid)
    family = [service, *service.children(recursive=True)]
    processes = [process for process in family if not process.name().startswith("postgres")]
    return Footprint(
        rss_bytes=sum(process.memory_info().rss for process in processes),
        threads=sum(process.num_threads() for process in processes),
    )


def arenas_of(pid: int) -> int:
    """Returns how many regions glibc has reserved for the memory of threads: 64 MiB each, what is not used barred."""
    regions = [_region(line) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return sum(
        start % HEAP_BYTES == 0 and (used, barred) == ("rw-p", "---p") and end == start + HEAP_BYTES
        for (start, _, used), (_, end, barred) in pairwise(regions)
    )


def _region(line: str) -> tuple[int, int, str]:
    """Returns where a mapping begins and ends, and what may be done there."""
    addresses, permissions, *_ = line.split()
    start, end = (int(address, 16) for address in addresses.split("-"))
    return start, end, permissions
