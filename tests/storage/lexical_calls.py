"""The shortest way to search by words in tests."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from db.connection import Connection
from db.filters import Filter
from db.lexical import LexicalAnswer, Words, score_words, search_words
from db.lexical_terms import DEFAULT_BOUNDS, Bounds
from db.pool import Database
from db.wall import ACROSS_USERS, AcrossUsers

SMALL = Bounds(exact_rows=20, min_sample=60, max_sample=60, min_found=30, max_found=30, count_up_to=1_000)
"""Bounds under which a user of a few hundred memories is a large one."""


def words(text: str, **changes: Any) -> Words:
    """Returns words to look for, in English unless `changes` say otherwise."""
    return Words(**({"text": text, "language": "english"} | changes))


def search(
    database: Database, user_id: str, wanted: str | Words, *, bounds: Bounds = DEFAULT_BOUNDS, **changes: Any
) -> LexicalAnswer:
    """Searches by words, for 100 memories without a filter unless `changes` say otherwise."""
    arguments: dict[str, Any] = {"filter": Filter(), "exclude": None, "limit": 100, "user_rows": None} | changes
    asked = words(wanted) if isinstance(wanted, str) else wanted
    return database.read(
        database.call(), lambda conn: search_words(conn, user_id, asked, bounds=bounds, **arguments), user_id=user_id
    )


def rescore(database: Database, answer: LexicalAnswer, ids: Sequence[UUID]) -> dict[UUID, float]:
    """Scores further memories as a search has scored what it found."""
    return database.read(database.call(), lambda conn: score_words(conn, answer, ids), user_id=ACROSS_USERS)


def planned(database: Database, statement: bytes, *, user_id: str | AcrossUsers) -> list[str]:
    """Returns how a prepared statement is run, line by line."""
    # PostgreSQL's own names for parameters.
    numbered: list[str] = []
    found: dict[str, int] = {}
    for position, part in enumerate(statement.decode().split("%(")):
        name, separator, rest = part.partition(")s")
        numbered.append(part if position == 0 else f"${found.setdefault(name, len(found) + 1)}{rest}")
        assert position == 0 or separator
    plan = "".join(numbered).encode()

    def explain(conn: Connection) -> list[tuple[str]]:
        with conn.transaction():  # as the role it runs as
            return conn.execute(b"EXPLAIN (GENERIC_PLAN) " + plan).fetchall()

    return [line for (line,) in database.read(database.call(), explain, user_id=user_id)]
