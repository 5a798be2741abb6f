"""What is evaluated on: memories of users, and questions with judged answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text to be stored as a memory."""

    id: str
    user: str
    text: str
    conversation: str = ""
    created_at: datetime | None = None
    importance: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a user asks."""

    number: int
    user: str
    text: str
    gains: Mapping[str, float]
    """Above 0 for each document that answers it, by id."""
    category: str = ""

    @property
    def tunes(self) -> bool:
        """Whether weights may be chosen by it: those with even numbers; the odd ones are for the report."""
        return self.number % 2 == 0


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Documents and questions."""

    name: str
    documents: Sequence[Document]
    questions: Sequence[Question]
    as_of: datetime | None = None
    """When the questions are asked; None: at the time of the run."""
    left_out: Sequence[str] = field(default_factory=list)
    """What the source holds and is not among them, and why."""

    def by_user(self) -> dict[str, list[Document]]:
        """Returns each user's documents."""
        found: dict[str, list[Document]] = {}
        for document in self.documents:
            found.setdefault(document.user, []).append(document)
        return found
