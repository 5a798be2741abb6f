"""How long calls were still refused after a cause had ended."""

from collections.abc import Iterable
from dataclasses import dataclass

from faults.journal import OK, Attempt, Journal


@dataclass(frozen=True, slots=True)
class Cause:
    """When something was wrong; times are of time.monotonic()."""

    began_at: float
    ended_at: float
    watched_until: float
    """When its consequences were no longer waited for."""


def seconds_until_served(journals: Iterable[Journal], cause: Cause) -> float:
    """Returns after how many seconds the last caller was served for good: with no attempt that failed later on."""
    return max((_served_at(journal.attempts, cause) for journal in journals), default=cause.ended_at) - cause.ended_at


def _served_at(attempts: Iterable[Attempt], cause: Cause) -> float:
    after = [attempt for attempt in attempts if cause.ended_at <= attempt.ended_at <= cause.watched_until]
    failed_at = max((attempt.ended_at for attempt in after if attempt.refusal != OK), default=cause.ended_at)
    return next(
        (attempt.ended_at for attempt in after if attempt.refusal == OK and attempt.ended_at >= failed_at),
        cause.watched_until,
    )


def longest_wait_s(journals: Iterable[Journal], *, began_at: float, ended_at: float) -> float:
    """Returns the longest time that an answered attempt took, of those that ended within a time."""
    return max(
        (
            attempt.ended_at - attempt.started_at
            for journal in journals
            for attempt in journal.attempts
            if attempt.refusal == OK and began_at <= attempt.ended_at <= ended_at
        ),
        default=0.0,
    )
