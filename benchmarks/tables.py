"""The tables that parts measure on, made when first asked for and shared by the parts that need them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import loading, real_text
from benchmarks.clustered import ClusteredSpace
from benchmarks.collection import Collection, User, UserPlan, clustered_collection
from benchmarks.real_text import RealText
from benchmarks.recall_truth import Truth
from benchmarks.scale import Scale
from harness import cranfield
from harness.instance import Instance

SEED = 20_261_121
QUESTIONS_OF_SMALL_USER = 8
REAL_DIMENSIONS = 256
REAL_FILLERS = 40
REAL_FILLER_SIZE = 250


@dataclass(frozen=True, slots=True)
class Table:
    """A database that holds a collection."""

    url: str
    collection: Collection
    truth: Truth
    kind: str
    """What the vectors are, for the report."""


class Tables:
    """Makes tables in the PostgreSQL of the run."""

    def __init__(self, instance: Instance, scale: Scale) -> None:
        self._instance = instance
        self._scale = scale
        self._made: dict[str, Table] = {}
        self._text: RealText | None = None
        self.space = ClusteredSpace(scale.dimensions, seed=SEED)
        """Where synthetic embeddings come from."""

    def many(self) -> Table:
        """Returns the table of many small users and the middle ones."""
        if "many" not in self._made:
            plan = many_users(self._scale)
            collection = clustered_collection(self.space, plan, texts=self.texts(), seed=SEED)
            self._made["many"] = self._store("many", collection, f"clustered synthetic, {self._scale.dimensions}-d")
        return self._made["many"]

    def sizes(self) -> Table:
        """Returns the table of one user for each size of the ladder, scattered among one another."""
        if "sizes" not in self._made:
            plan = [UserPlan(user_of_size(size), size, self._scale.questions) for size in self._scale.user_ladder]
            collection = clustered_collection(self.space, plan, texts=self.texts(), seed=SEED + 1)
            self._made["sizes"] = self._store("sizes", collection, f"clustered synthetic, {self._scale.dimensions}-d")
        return self._made["sizes"]

    def real(self) -> Table:
        """Returns the table of real text embeddings, or of synthetic ones where the text is not at hand."""
        if "real" not in self._made:
            collection, kind = self._real_collection()
            self._made["real"] = self._store("real", collection, kind)
        return self._made["real"]

    def empty(self, name: str) -> str:
        """Makes a migrated database without rows and returns its URL; `drop` removes it."""
        return self._instance.create(name, dimensions=self._scale.dimensions)

    def drop(self, name: str) -> None:
        """Removes a database made by `empty`."""
        self._instance.drop(name)

    def few(self, *, users: int, size: int, seed: int) -> Collection:
        """Returns a collection of its own, not stored, of users named user-0 and so on."""
        plan = [UserPlan(f"user-{number}", size, QUESTIONS_OF_SMALL_USER) for number in range(users)]
        return clustered_collection(self.space, plan, texts=self.texts(), seed=seed)

    def texts(self) -> Sequence[str]:
        """Returns contents for memories: real sentences where they are at hand."""
        text = self._real_text()
        if text is not None:
            return text.sentences
        return [f"A memory of about the length of a message in a chat, one of several hundred: {n}" for n in range(500)]

    def _real_text(self) -> RealText | None:
        if self._text is None and (place := cranfield.folder()) is not None:
            self._text = real_text.read(place)
        return self._text

    def _real_collection(self) -> tuple[Collection, str]:
        size = self._scale.middle_user
        text = self._real_text()
        if text is None:
            plan = [UserPlan("middle-0", size, self._scale.questions)]
            space = ClusteredSpace(REAL_DIMENSIONS, seed=SEED)
            collection = clustered_collection(space, plan, texts=self.texts(), seed=SEED)
            return collection, f"clustered synthetic, 256-d ({cranfield.VARIABLE} names no Cranfield collection)"
        users, parts, first = [], [], 0
        sizes = [("middle", size)] * self._scale.middle_users + [("filler", REAL_FILLER_SIZE)] * REAL_FILLERS
        for number, (name, count) in enumerate(sizes):
            # The first user's memories are the sentences themselves, as far as they reach.
            own = text.vectors[:count] if number == 0 else text.vectors[:0]
            more = real_text.expanded(text.vectors, count - len(own), seed=SEED + number)
            parts.append(np.concatenate([own, more]))
            users.append(User(f"{name}-{number}", first, count, text.questions))
            first += count
        vectors = np.concatenate(parts)
        topics = np.random.default_rng(SEED).integers(0, 100, len(vectors))
        kind = (
            f"real text, 256-d: {len(text.sentences):,} Cranfield sentences by the local model, expanded by "
            f"x_i + 0.5 (x_j - x_k); queries are its {len(text.questions)} questions"
        )
        return Collection(vectors, topics, users, texts=text.sentences, seed=SEED), kind

    def _store(self, name: str, collection: Collection, kind: str) -> Table:
        url = self._instance.create(name, dimensions=collection.dimensions)
        loading.store(url, collection)
        return Table(url, collection, Truth(collection), kind)


def many_users(scale: Scale) -> list[UserPlan]:
    """Returns who is in the table of many users."""
    small = [
        UserPlan(f"small-{number:03d}", 250 if number % 2 else 100, QUESTIONS_OF_SMALL_USER)
        for number in range(scale.small_users)
    ]
    middle = [UserPlan(f"middle-{number}", scale.middle_user, scale.questions) for number in range(scale.middle_users)]
    return [*small, *middle]


def user_of_size(size: int) -> str:
    """Returns the name of the user with so many memories in the table of sizes."""
    return f"size-{size}"
