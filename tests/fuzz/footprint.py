"""What a service's processes take: memory and threads."""

from dataclasses import dataclass

import psutil

MIB = 1 << 20


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
