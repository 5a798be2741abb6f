"""The rows of one table: who owns them, their vectors and attributes, and the questions held out for each user."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from benchmarks.clustered import ClusteredSpace, Vectors
from benchmarks.question import Restriction

# Ids are UUIDs of version 7 whose last 48 bits are the row's number: the answer to a search tells the rows.
_FIRST_MS = 1_760_000_000_000
_ROW_BITS = 48
CONVERSATIONS = 100


@dataclass(frozen=True, slots=True)
class UserPlan:
    """A user to be made: `size` memories, and `questions` held out."""

    name: str
    size: int
    questions: int


@dataclass(frozen=True, slots=True)
class User:
    """A user's rows are `first` to `first + size - 1`."""

    name: str
    first: int
    size: int
    questions: Vectors
    """Held out: drawn like the memories, and not among them."""

    @property
    def rows(self) -> slice:
        """Where the user's rows are in the collection."""
        return slice(self.first, self.first + self.size)


class Collection:
    """Rows numbered from 0, user by user. They are stored in another, random order, so that users are scattered."""

    def __init__(
        self, vectors: Vectors, topics: NDArray[np.int64], users: Sequence[User], *, texts: Sequence[str], seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        self.vectors = vectors
        self.users = list(users)
        self.owners = np.repeat(np.arange(len(users)), [user.size for user in users])
        self._texts = texts
        # A conversation is about something, so its rows lie together; the other attributes are independent.
        self.conversations = topics % CONVERSATIONS
        self.importances = random.integers(1, 11, len(vectors))
        self.hundredths = random.integers(0, 100, len(vectors))
        self.storage_order = random.permutation(len(vectors))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimensions(self) -> int:
        """Of every vector."""
        return int(self.vectors.shape[1])

    def named(self, prefix: str) -> list[User]:
        """Returns the users whose names begin so."""
        return [user for user in self.users if user.name.startswith(prefix)]

    def content(self, row: int) -> str:
        """Returns the text of a row."""
        return self._texts[row % len(self._texts)]

    def metadata(self, row: int) -> dict[str, Any]:
        """Returns the metadata of a row."""
        hundredth = int(self.hundredths[row])
        return {"hundredth": hundredth, "tenth": hundredth // 10, "source": "chat", "language": "en"}

    def visible(self, user: User, restriction: Restriction) -> NDArray[np.int64]:
        """Returns the numbers of the user's rows that a restriction leaves."""
        rows = np.arange(user.first, user.first + user.size)
        if restriction.importance is not None:
            rows = rows[self.importances[rows] == restriction.importance]
        if restriction.hundredth is not None:
            rows = rows[self.hundredths[rows] == restriction.hundredth]
        if restriction.tenth is not None:
            rows = rows[self.hundredths[rows] // 10 == restriction.tenth]
        if restriction.conversation is not None:
            rows = rows[self.conversations[rows] == restriction.conversation]
        return rows


def id_of(row: int) -> UUID:
    """Returns the id of a row."""
    return UUID(int=(_FIRST_MS + row) << 80 | 7 << 76 | 2 << 62 | row)


def row_of(memory_id: str | UUID) -> int:
    """Returns the row of an id made by `id_of`."""
    return int(str(memory_id)[-_ROW_BITS // 4 :], 16)


def clustered_collection(
    space: ClusteredSpace, plan: Sequence[UserPlan], *, texts: Sequence[str], seed: int
) -> Collection:
    """Returns a collection of synthetic users, each with topics of its own.

    Args:
        space: Where the vectors come from.
        plan: Who there is to be.
        texts: Contents, used in turn.
        seed: Of everything random.
    """
    users: list[User] = []
    total = sum(planned.size for planned in plan)
    vectors = np.empty((total, space.dimensions), np.float32)
    topics = np.empty(total, np.int64)
    first = 0
    for number, planned in enumerate(plan):
        memories, held_out = space.draw(planned.size, planned.questions, seed=seed + number)
        user = User(planned.name, first, planned.size, held_out.vectors)
        vectors[user.rows] = memories.vectors
        topics[user.rows] = memories.topics
        users.append(user)
        first += planned.size
    return Collection(vectors, topics, users, texts=texts, seed=seed)
