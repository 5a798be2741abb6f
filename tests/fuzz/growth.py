"""The rounds of a long run, and whether the service takes more and more from one to the next."""

import itertools
import time
from collections.abc import Iterator, Sequence

from tests.fix_server import ServerProcess
from tests.fuzz.footprint import MIB, Footprint, footprint_of
from tests.fuzz.target import Target

# The first round's inputs are sent again in the end, so many times.
REPETITIONS = 4
# What grows by more than this from the second round to the last has no bound. New inputs leave their high-water marks.
MAX_GROWTH_BYTES = 16 * MIB
MAX_GROWTH_BY_NEW_BYTES = 48 * MIB
MAX_MORE_THREADS = 4


class Rounds:
    """Rounds of new inputs until there were enough, or no time is left; then the first one again."""

    def __init__(self, server: ServerProcess, target: Target) -> None:
        self._server = server
        self._target = target
        self._by_new: list[Footprint] = []
        self._by_repeated: list[Footprint] = []

    def numbers(self, first: int, *, inputs: int, ends_at: float) -> Iterator[int]:
        """Yields the seed of each round, until the service has ended; `ends_at` is of time.monotonic()."""
        for number in itertools.count(first):
            if self._target.inputs >= inputs or time.monotonic() >= ends_at or not self._runs:
                break
            yield number
            self._note(self._by_new)
        for _ in range(REPETITIONS):
            if not self._runs:
                return
            yield first
            self._note(self._by_repeated)

    def growth(self) -> dict[str, tuple[Sequence[Footprint], bool]]:
        """Returns what the service took after each round, by the kind of round, and whether it grew by too much."""
        return {
            "new inputs": (self._by_new, grew(self._by_new, MAX_GROWTH_BY_NEW_BYTES)),
            "the first round again": (self._by_repeated, grew(self._by_repeated, MAX_GROWTH_BYTES)),
        }

    @property
    def _runs(self) -> bool:
        return self._server.process.poll() is None

    def _note(self, footprints: list[Footprint]) -> None:
        if self._runs:
            footprints.append(footprint_of(self._server.process.pid))


def grew(footprints: Sequence[Footprint], most_bytes: int) -> bool:
    """Returns whether the last footprint exceeds the second one, when all caches are warm, by more than it may."""
    if len(footprints) <= 2:
        return False
    warm, last = footprints[1], footprints[-1]
    return last.rss_bytes - warm.rss_bytes > most_bytes or last.threads - warm.threads > MAX_MORE_THREADS
