"""A table that grows while its users stay as they are: more of them, each with 250 memories."""

from dataclasses import replace

import numpy as np
import psycopg

from benchmarks import loading
from benchmarks.part import SMALL_USER
from benchmarks.progress import say
from benchmarks.question import Question
from benchmarks.tables import Tables
from db import sign_bits
from harness.instance import settle

NAME = "growing"
SEED = 30

# More users like the first ones, made by the server itself: the same memories under other owners.
MORE_USERS = """/* benchmark.more_users */
INSERT INTO users (user_id, created_at)
SELECT user_id || %(suffix)s, created_at FROM users WHERE user_id = ANY(%(users)s)
"""

MORE_CONVERSATIONS = """/* benchmark.more_conversations */
INSERT INTO conversations (user_id, conversation_id, created_at)
SELECT user_id || %(suffix)s, conversation_id, created_at FROM conversations WHERE user_id = ANY(%(users)s)
"""

COLUMNS = """id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model, importance,
    version, created_at, updated_at"""

MORE_MEMORIES = """/* benchmark.more_memories */
INSERT INTO memory_entries (user_id, {columns})
SELECT user_id || %(suffix)s, {columns} FROM memory_entries WHERE user_id = ANY(%(users)s)
"""


class GrowingTable:
    """Begins with `first` memories, and grows by that many at a time."""

    def __init__(self, tables: Tables, *, first: int) -> None:
        self._collection = tables.few(users=first // SMALL_USER, size=SMALL_USER, seed=SEED)
        self._random = np.random.default_rng(SEED)
        self._copies = 0
        self.url = tables.empty(NAME)

    def grow_to(self, rows: int) -> None:
        """Adds users until the table has `rows` memories, and lets it settle."""
        say(f"growing the table to {rows:,} memories")
        with loading.connect(self.url) as connection:
            if self._copies == 0:
                loading.store(self.url, self._collection)
                self._copies = 1
            while self._copies * len(self._collection) < rows:
                self._add_copy(connection)
        settle(self.url)

    def _add_copy(self, connection: psycopg.Connection) -> None:
        users = [user.name for user in self._collection.users]
        columns = f"{COLUMNS}, bits" if sign_bits.kept_for(self._collection.dimensions) else COLUMNS
        with connection.transaction():
            for statement in (MORE_USERS, MORE_CONVERSATIONS, MORE_MEMORIES.format(columns=columns)):
                connection.execute(statement, {"suffix": _suffix(self._copies), "users": users})
        self._copies += 1

    def draw(self, count: int) -> list[Question]:
        """Returns questions of users drawn anew for each among all there are by now."""
        questions = []
        for _ in range(count):
            user = self._collection.users[self._random.integers(len(self._collection.users))]
            vector = user.questions[self._random.integers(len(user.questions))]
            name = user.name + _suffix(int(self._random.integers(self._copies)))
            questions.append(Question(name, vector))
        return questions

    def newcomers(self, count: int) -> list[Question]:
        """Returns vectors to be stored for users drawn like those of `draw`: unlike any stored before."""
        drawn = self.draw(count)
        noise = self._random.standard_normal((count, self._collection.dimensions), dtype=np.float32) * np.float32(0.01)
        return [replace(question, vector=question.vector + noise[row]) for row, question in enumerate(drawn)]


def _suffix(copy: int) -> str:
    return f"-{copy}" if copy else ""
