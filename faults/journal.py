"""What one caller was told: what its users have stored, and how each attempt ended. Crosses from process to process."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

OK = ""


class Attempt(NamedTuple):
    """One try of a call; times are of time.monotonic(), which all processes of a machine share."""

    started_at: float
    ended_at: float
    refusal: str
    """OK, or the status and the reason it was refused for."""


@dataclass(slots=True)
class Kept:
    """A memory that was acknowledged."""

    content: str
    summary: str
    etag: str
    changes: int = 0
    """Updates, deletions and restorations acknowledged since it was stored."""
    deleted: bool = False


@dataclass(slots=True)
class UserJournal:
    """What one user was told; a user has one caller, who makes one call after the other."""

    kept: dict[str, Kept] = field(default_factory=dict)
    """By id; deleted ones too."""
    erased: set[str] = field(default_factory=set)
    unsettled_ids: set[str] = field(default_factory=set)
    """Of memories whose last change was never answered: it may have happened or not."""
    unsettled_contents: set[str] = field(default_factory=set)
    """Of memories whose storing was never answered."""

    @property
    def live(self) -> dict[str, Kept]:
        """What is to be found."""
        return {memory_id: kept for memory_id, kept in self.kept.items() if not kept.deleted}

    @property
    def settled(self) -> bool:
        """Whether everything asked has been answered."""
        return not self.unsettled_ids and not self.unsettled_contents


@dataclass(slots=True)
class Journal:
    """What one caller was told."""

    users: dict[str, UserJournal] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    acknowledged: Counter[str] = field(default_factory=Counter)
    """Calls by method."""
    strangers: list[str] = field(default_factory=list)
    """Replies with rows of another user."""
    wrong_reads: list[str] = field(default_factory=list)
    """Replies that lacked what was acknowledged, or held what was deleted."""
    unexpected: list[str] = field(default_factory=list)
    """Errors that no fault excuses, such as INTERNAL."""
    defect: str | None = None
    """Why the caller itself broke down."""

    @property
    def refusals(self) -> Counter[str]:
        """Attempts refused, by status and reason."""
        return Counter(attempt.refusal for attempt in self.attempts if attempt.refusal != OK)
