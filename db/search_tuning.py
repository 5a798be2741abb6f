"""How far approximate searches look at the moment: further when measured recall is too low, less far when it allows.

Each process has its own; a new process begins with what is configured.
"""

import threading
from collections import deque
from dataclasses import replace
from statistics import fmean

import structlog

from db.search_plan import Plan, SearchTuning

log = structlog.get_logger(__name__)

MAX_WIDENING = 8
# A mean over fewer recalls of a top 10 is too easily wrong by the 0.02 that the target leaves.
ENOUGH = 30
WINDOW = 200
# How many windows of good recall it takes, at most, before looking less far is tried again.
MAX_PATIENCE = 64


class TuningState:
    """The tuning in force, and the recalls measured since it came into force."""

    def __init__(self, configured: SearchTuning, *, target: float) -> None:
        self._lock = threading.Lock()
        self._current = configured
        self._target = target
        self._recalls: dict[Plan, deque[float]] = {}
        self._measured_count = 0
        self._patience = 1
        self._lowered = False

    @property
    def current(self) -> SearchTuning:
        """What searches are to use now."""
        return self._current

    def measured(self, plan: Plan, recall: float) -> float:
        """Takes a measured recall into account; returns the mean of the plan's last ones, at most WINDOW."""
        with self._lock:
            recalls = self._recalls.setdefault(plan, deque(maxlen=WINDOW))
            recalls.append(recall)
            self._measured_count += 1
            mean = fmean(recalls)
            if len(recalls) >= ENOUGH and mean < self._target:
                self._widen(plan, mean)
            elif self._current.widening > 1 and self._good_for_long():
                self._narrow()
        return mean

    def _widen(self, plan: Plan, mean: float) -> None:
        if self._lowered:
            # Looking less far was a mistake: wait longer before it is repeated.
            self._patience = min(MAX_PATIENCE, 2 * self._patience)
        self._set(min(MAX_WIDENING, 2 * self._current.widening))
        self._lowered = False
        log.warning(
            "recall_below_target",
            plan=plan.value,
            recall=round(mean, 4),
            target=self._target,
            widening=self._current.widening,
        )

    def _good_for_long(self) -> bool:
        if self._measured_count < self._patience * WINDOW:
            return False
        # Half way between the target and 1, so that half as many candidates may still reach the target.
        well_above = (1.0 + self._target) / 2
        return all(fmean(recalls) >= well_above for recalls in self._recalls.values())

    def _narrow(self) -> None:
        self._set(self._current.widening // 2)
        self._lowered = True
        log.info("recall_above_target", target=self._target, widening=self._current.widening)

    def _set(self, widening: int) -> None:
        self._current = replace(self._current, widening=widening)
        # Older recalls speak of another tuning.
        self._recalls.clear()
        self._measured_count = 0
