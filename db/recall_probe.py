"""Measuring recall while serving: a sample of approximate searches is repeated exactly, on a thread of its own.

An exact search of a large user costs a hundred times the approximate one: probes run one at a time, and for at most
MAX_SHARE of the time. A sample that comes while one runs, or during the pause that follows, is dropped.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol
from uuid import UUID

import structlog

from db.cancellation import Call
from db.connection import Connection
from db.errors import DatabaseError
from db.memory import View
from db.pool import Database
from db.search import Answer, Hit, Means, Nearest, search
from db.search_plan import Coarse, Plan
from db.search_tuning import TuningState

log = structlog.get_logger(__name__)

# Of the wall time, spent waiting for exact searches: they take one of the database's cores for that long.
MAX_SHARE = 0.01
# A user whose exact search takes longer is not measured.
TIMEOUT = "/* recall_probe.timeout */ SET LOCAL statement_timeout = '2s'"
# A row stamped before the search may be committed after it: no transaction of ours takes this long.
IN_FLIGHT = timedelta(seconds=30)
# Scores differ by this much at most for the same vectors (float32, on a scale from -1 to 1).
TIE = 1e-6


@dataclass(frozen=True, slots=True)
class Found:
    """A result of the search to be measured."""

    id: UUID
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An approximate search and what it found."""

    user_id: str
    nearest: Nearest
    plan: Plan
    found: tuple[Found, ...]
    searched_at: datetime


class NotMeasured(Enum):
    """Why a search that was drawn tells nothing."""

    DROPPED = "dropped"
    """Another one was being repeated, or the time for probing was used up."""
    CHANGED = "changed"
    """All that should have been found was written just before the search, or since."""
    FAILED = "failed"
    """The exact search took too long, or the database did not answer."""


class Report(Protocol):
    """Is told what became of each sample."""

    def recall_measured(self, plan: Plan, recall: float, mean: float) -> None:
        """Takes a recall and the mean that it is now part of."""

    def recall_not_measured(self, reason: NotMeasured) -> None:
        """Takes note of a search that was drawn in vain."""


class RecallProbe:
    """Draws samples, repeats them, and lets the tuning know their recall."""

    def __init__(
        self,
        database: Database,
        tuning: TuningState,
        report: Report,
        *,
        coarse: Coarse,
        fraction: float,
        clock: Callable[[], datetime],
        max_share: float = MAX_SHARE,
    ) -> None:
        """Prepares to repeat `fraction` of the approximate searches, 0 to 1, for `max_share` of the time."""
        self._database = database
        self._tuning = tuning
        self._report = report
        self._coarse = coarse
        self._fraction = fraction
        self._clock = clock
        self._pause_factor = (1.0 - max_share) / max_share
        self._lock = threading.Lock()
        self._busy = False
        self._resume_at = 0.0
        self._samples: queue.SimpleQueue[Sample | None] = queue.SimpleQueue()
        self._call: Call | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="recall-probe", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, cancelling a probe under way."""
        self._closing = True
        if self._call is not None:
            self._call.cancel()
        self._samples.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def offer(self, user_id: str, nearest: Nearest, answer: Answer) -> None:
        """Takes a search just answered, perhaps, to repeat it soon. Never blocks."""
        # A caller's own ef_search or candidates says nothing about the tuning.
        chosen_by_us = nearest.ef_search is None and nearest.candidates is None
        if answer.plan is Plan.EXACT or not chosen_by_us or random.random() >= self._fraction:  # noqa: S311 - no secret
            return
        with self._lock:
            accepted = not self._busy and time.monotonic() >= self._resume_at
            self._busy = self._busy or accepted
        if not accepted:
            self._report.recall_not_measured(NotMeasured.DROPPED)
            return
        found = tuple(Found(hit.memory.id, hit.score) for hit in answer.hits)
        self._samples.put(
            Sample(user_id=user_id, nearest=nearest, plan=answer.plan, found=found, searched_at=self._clock())
        )

    def _run(self) -> None:
        # The log of slow statements is to say whose they are.
        structlog.contextvars.bind_contextvars(task="recall-probe")
        while (sample := self._samples.get()) is not None:
            started_at = time.monotonic()
            recall = self._measure(sample)
            now = time.monotonic()
            with self._lock:
                self._busy = False
                self._resume_at = now + self._pause_factor * (now - started_at)
            if isinstance(recall, NotMeasured):
                self._report.recall_not_measured(recall)
            else:
                self._report.recall_measured(sample.plan, recall, self._tuning.measured(sample.plan, recall))

    def _measure(self, sample: Sample) -> float | NotMeasured:
        call = self._call = self._database.call()
        if self._closing:
            return NotMeasured.FAILED
        try:
            exact = self._search_exactly(sample, call)
        except DatabaseError as error:
            log.info("recall_not_measured", plan=sample.plan.value, error=str(error))
            return NotMeasured.FAILED
        except Exception:  # the thread outlives a defect in one probe
            log.exception("recall_not_measured", plan=sample.plan.value)
            return NotMeasured.FAILED
        recall = recall_of(
            sample.found, exact, limit=sample.nearest.limit, changed_after=sample.searched_at - IN_FLIGHT
        )
        return NotMeasured.CHANGED if recall is None else recall

    def _search_exactly(self, sample: Sample, call: Call) -> list[Hit]:
        nearest = replace(sample.nearest, exact=True, view=View.HEAD, max_text_bytes=None)
        means = Means(coarse=self._coarse, ann=None, user_rows=None, tuning=self._tuning.current)

        def run(conn: Connection) -> list[Hit]:
            with conn.transaction():
                conn.execute(TIMEOUT)
                return search(conn, sample.user_id, nearest, means).hits

        return self._database.read(call, run, user_id=sample.user_id)


def recall_of(found: Sequence[Found], exact: Sequence[Hit], *, limit: int, changed_after: datetime) -> float | None:
    """Returns the share of the true results that a search found, or None where there are none to compare.

    Args:
        found: What the search found.
        exact: What the same search finds exactly, a little later; at most `limit`, nearest first.
        limit: How many results were asked for.
        changed_after: Rows changed since are left out: the search may not have seen them.
    """
    farthest = exact[-1].score if len(exact) == limit else float("-inf")
    exact_ids = {hit.memory.id for hit in exact}
    # Nearer than the farthest true result and none of them: deleted since. Others have moved up in its place.
    gone_count = sum(one.score > farthest + TIE and one.id not in exact_ids for one in found)
    unchanged = [hit for hit in exact if hit.memory.updated_at <= changed_after]
    expected = unchanged[: max(0, limit - gone_count)]
    if not expected:
        return None
    found_ids = {one.id for one in found}
    missing = [hit for hit in expected if hit.memory.id not in found_ids]
    # As near as the farthest: which of them are among the results, their ids decide.
    ties_missing = sum(hit.score <= farthest + TIE for hit in missing)
    ties_found = sum(abs(one.score - farthest) <= TIE and one.id not in exact_ids for one in found)
    return 1.0 - (len(missing) - min(ties_missing, ties_found)) / len(expected)
