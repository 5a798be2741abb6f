"""Compares what callers were told with what the database holds in the end."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg

from faults.journal import Journal, Kept, UserJournal

FIRST_VERSION = 1

STORED = """
SELECT user_id, id::text, content, summary, version, deleted_at IS NOT NULL FROM memory_entries
WHERE user_id = ANY(%(user_ids)s)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A memory as it is stored."""

    content: str
    summary: str
    version: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class Discrepancies:
    """What does not agree; each list is empty where all is well."""

    lost: list[str]
    """Acknowledged writes that are not there."""
    doubled: list[str]
    """Writes that are there once more, or were never acknowledged nor under way."""
    strangers: list[str]
    """Rows of one user that another one was shown, or that carry another one's content."""


def compare(database_url: str, journals: Sequence[Journal]) -> Discrepancies:
    """Returns where the database disagrees with the journals of all its callers."""
    return discrepancies(_read(database_url, [user_id for journal in journals for user_id in journal.users]), journals)


def discrepancies(stored: Mapping[str, Mapping[str, Row]], journals: Iterable[Journal]) -> Discrepancies:
    """Returns where rows, by user and id, disagree with journals."""
    users = {user_id: user for journal in journals for user_id, user in journal.users.items()}
    strangers = [found for journal in journals for found in journal.strangers]
    lost: list[str] = []
    doubled: list[str] = []
    for user_id, user in users.items():
        rows = stored.get(user_id, {})
        lost += _lost(user, rows)
        doubled += _doubled(user, rows)
        strangers += [f"{memory_id} of {user_id}" for memory_id, row in rows.items() if not _is_of(row, user_id)]
    return Discrepancies(lost, doubled, strangers)


def _read(database_url: str, user_ids: list[str]) -> Mapping[str, dict[str, Row]]:
    found: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    with psycopg.connect(database_url) as connection:
        for user_id, memory_id, *values in connection.execute(STORED, {"user_ids": user_ids}):
            found[user_id][memory_id] = Row(*values)
    return found


def _lost(user: UserJournal, rows: Mapping[str, Row]) -> Iterator[str]:
    for memory_id, kept in user.kept.items():
        if memory_id in user.unsettled_ids:
            continue
        row = rows.get(memory_id)
        if row is None:
            yield f"{memory_id}: not there"
        elif row.version < FIRST_VERSION + kept.changes or not _is_same(row, kept):
            yield f"{memory_id}: {kept} was acknowledged, stored is {row}"
    for memory_id in user.erased & rows.keys():
        yield f"{memory_id}: there although erased"


def _doubled(user: UserJournal, rows: Mapping[str, Row]) -> Iterator[str]:
    for memory_id, row in rows.items():
        kept = user.kept.get(memory_id)
        if kept is None:
            if memory_id not in user.erased and row.content not in user.unsettled_contents:
                yield f"{memory_id}: {row} was never acknowledged"
        elif memory_id not in user.unsettled_ids and row.version > FIRST_VERSION + kept.changes:
            yield f"{memory_id}: {kept.changes} changes acknowledged, {row.version - FIRST_VERSION} made"
    contents = [row.content for row in rows.values()]
    for content in {content for content in contents if contents.count(content) > 1}:
        yield f"{content!r} is stored more than once"


def _is_same(row: Row, kept: Kept) -> bool:
    return (row.content, row.summary, row.deleted) == (kept.content, kept.summary, kept.deleted)


def _is_of(row: Row, user_id: str) -> bool:
    return row.content.startswith(f"{user_id} ")
