"""A workload on a service, what befell them, and the findings: the common part of all scenarios."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from faults import audit
from faults.recovery import Cause, longest_wait_s, seconds_until_served
from faults.scenario import Figures
from faults.service import Footprint, Service
from faults.sessions import pool_of_all
from faults.silence import silent_calls
from faults.workload import Load, NoProgress, Workload

RECOVERY_S = 10.0
"""What is promised."""

WARM_UP_S = 60.0
# More than what is promised, so that there is a number also where the promise is broken.
PATIENCE_S = 60.0
CALLS_BEFORE = 15
CALLS_AFTER = 10
# Refusals may come a moment after the first answers.
SETTLING_S = 1.0

# As many as one process works on at a time at most: with an embedding provider.
ALL_THREADS = {"SearchSimilar": 16, "InsertVector": 16, "ImportVectors": 4}
FILLING_S = 0.4

CALM_S = 20.0
# gRPC starts and ends threads as it likes.
THREADS_MORE = 6
# A pool that has grown keeps its connections for five minutes.
FILES_MORE = 12
SHOWN = 5


class Trial:
    """Callers at work on a service, from entering it until `findings`."""

    def __init__(self, service: Service, load: Load, *, texts: bool = False, refusal: str = "") -> None:
        """Starts the callers.

        Args:
            service: What they call.
            load: How many there are.
            texts: Whether they leave embedding to the server.
            refusal: What some of them have to be told, such as "UNAVAILABLE (gRPC)": otherwise there was no harm.
        """
        self.service = service
        """May be replaced by one that was started in its place."""
        self._workload = Workload(service.address, load, texts=texts)
        self._callers = load.callers
        self._refusal = refusal
        self._causes: list[Cause] = []
        self._before = Footprint(0, 0)

    def __enter__(self) -> Self:
        try:
            self._workload.wait_until_served(CALLS_BEFORE, within_s=WARM_UP_S)
            self._start_all_threads()
            self._workload.wait_until_served(CALLS_BEFORE, since=time.monotonic(), within_s=WARM_UP_S)
        except BaseException:
            self._workload.__exit__(None, None, None)
            raise
        self._before = self.service.footprint()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._workload.__exit__(kind, error, traceback)

    @contextmanager
    def cause(self) -> Iterator[None]:
        """Notes when the block, which does the harm and undoes it, began and ended; then waits for recovery."""
        began_at = time.monotonic()
        yield
        ended_at = time.monotonic()
        with suppress(NoProgress):  # the findings tell
            time.sleep(SETTLING_S)
            self._workload.wait_until_served(CALLS_AFTER, since=ended_at, within_s=PATIENCE_S)
        self._causes.append(Cause(began_at, ended_at, time.monotonic()))

    def findings(self, database_url: str) -> Figures:
        """Ends the callers and returns what became of them and of what they stored.

        Raises:
            RuntimeError: When a caller itself broke down.
        """
        under_load = self.service.footprint()
        journals = self._workload.stop()
        if defect := next((journal.defect for journal in journals if journal.defect), None):
            raise RuntimeError(defect)
        found = audit.compare(database_url, journals)
        acknowledged = sum((journal.acknowledged for journal in journals), Counter[str]())
        refused = sum((journal.refusals for journal in journals), Counter[str]())
        self._start_all_threads()  # those of a process that took another one's place, too
        after, pool = self._calmed_down(database_url)
        figures: Figures = {
            "recovery_s": max(seconds_until_served(journals, cause) for cause in self._causes),
            "recoveries_s": [seconds_until_served(journals, cause) for cause in self._causes],
            "causes_s": [cause.ended_at - cause.began_at for cause in self._causes],
            "longest_answer_s": max(
                longest_wait_s(journals, began_at=cause.began_at, ended_at=cause.watched_until)
                for cause in self._causes
            ),
            "acknowledged": dict(sorted(acknowledged.items())),
            "refused": dict(refused.most_common()),
            "not_met": "" if self._refusal in {"", *refused} else self._refusal,
            "lost": len(found.lost),
            "doubled": len(found.doubled),
            "strangers": len(found.strangers),
            "wrong_reads": sum(len(journal.wrong_reads) for journal in journals),
            "unexpected": sum((Counter(journal.unexpected) for journal in journals), Counter[str]()),
            "internal_errors": len(self.service.events("internal_error")),
            "threads": {"before": self._before.threads, "under_load": under_load.threads, "after": after.threads},
            # Without the connections of callers, who are gone in the end.
            "files": {
                "before": self._before.files - self._callers,
                "under_load": under_load.files - self._callers,
                "after": after.files,
            },
            "pool": pool,
            "examples": [
                *found.lost[:SHOWN],
                *found.doubled[:SHOWN],
                *found.strangers[:SHOWN],
                *[wrong for journal in journals for wrong in journal.wrong_reads][:SHOWN],
            ],
        }
        return figures

    def _start_all_threads(self) -> None:
        """Has the service start all threads that it may: they come with calls at one time, stay, and are no leak."""
        with silent_calls(self.service.address, ALL_THREADS):
            time.sleep(FILLING_S)

    def _calmed_down(self, database_url: str) -> tuple[Footprint, dict[str, int]]:
        """Returns what the service holds once it holds no more than before, or in the end."""
        deadline = time.monotonic() + CALM_S
        while True:
            footprint, pool = self.service.footprint(), self._pool(database_url)
            calm = (
                footprint.threads <= self._before.threads + THREADS_MORE
                and footprint.files <= self._before.files - self._callers + FILES_MORE
                and _is_idle(pool)
            )
            if calm or time.monotonic() > deadline:
                return footprint, pool
            time.sleep(0.5)

    def _pool(self, database_url: str) -> dict[str, int]:
        """Returns the state of the pool; with several workers, what can be seen of theirs together."""
        return pool_of_all(database_url) if self.service.workers() else self.service.pool()


def _is_idle(pool: dict[str, int]) -> bool:
    # Who asks for metrics takes one connection to read what is stored.
    return pool.get("requests_waiting", 0) == 0 and 0 < pool["size"] <= pool["available"] + 1


def shortfalls(figures: Figures) -> list[str]:
    """Returns what was promised and not kept: of every fault, and what a scenario itself names `broken_promises`."""
    found = [
        f"{name.replace('_', ' ')}: {figures[name]}"
        for name in ("lost", "doubled", "strangers", "wrong_reads", "unexpected", "internal_errors", "broken_promises")
        if figures.get(name)
    ]
    if figures["not_met"]:
        found.append(f"no harm was done: nobody was refused with {figures['not_met']}")
    recovery_s = figures["recovery_s"]
    if not isinstance(recovery_s, float) or recovery_s > RECOVERY_S:
        found.append(f"recovery took {recovery_s} s")
    for name, more in (("threads", THREADS_MORE), ("files", FILES_MORE)):
        counts = figures[name]
        if isinstance(counts, dict) and counts["after"] > counts["before"] + more:
            found.append(f"{name}: {counts['after']} after, {counts['before']} before")
    pool = figures["pool"]
    if isinstance(pool, dict) and not _is_idle(pool):
        found.append(f"the pool is not idle: {pool}")
    return found
