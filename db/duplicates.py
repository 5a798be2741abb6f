"""Storing new memories under a policy for duplicates: finding, deciding and writing in one transaction.

docs/adr/0012-duplicates.md says why writers of one user take turns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db import delete, duplicate_lookup, insert, reinforce
from db.connection import Connection
from db.duplicate_decisions import Candidate, Decision, Decisions, DuplicatePolicy, InsertOutcome
from db.errors import Conflict, MemoryExists
from db.memory import NewMemory, etag

ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """Which memories are duplicates, and what to do with a new one."""

    policy: DuplicatePolicy
    min_similarity: float | None = None
    """The cosine similarity from which on a memory is a duplicate; None: only the same content is."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A duplicate that was met."""

    id: UUID
    similarity: float
    same_content: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of a new memory."""

    outcome: InsertOutcome
    id: UUID
    """Of the memory, or of the one there was where it was not stored; so are the etag and created_at."""
    etag: str
    created_at: datetime
    duplicate: Duplicate | None


# The user's row comes first, as in requests.claim and insert.one: with a new user these would else wait for each other.
# Hashes with the sign bit set are all negative; the lock of migrations is a positive number, those of the maintenance
# of indexes are pairs.
TAKE_TURNS = """/* duplicates.take_turns */
WITH owner AS (
    INSERT INTO users (user_id, created_at) VALUES (%(user_id)s, %(now)s)
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT pg_advisory_xact_lock(hashtextextended(%(user_id)s::text, 0) | x'8000000000000000'::bigint)
WHERE (SELECT count(*) FROM owner) >= 0
"""


def take_turns(conn: Connection, user_id: str, *, now: datetime) -> None:
    """Waits until no other transaction that has called this for the user is under way; stores the user if new."""
    conn.query(TAKE_TURNS, {"user_id": user_id, "now": now})


def store(
    conn: Connection,
    user_id: str,
    memories: Sequence[NewMemory],
    duplicates: Duplicates,
    *,
    now: datetime,
    purge_at: datetime,
) -> list[Receipt]:
    """Stores those of the memories that the policy lets in, in order, and returns what became of each.

    `purge_at` is from when on superseded memories may be purged. Other callers of this function wait until the
    transaction ends when they write for the same user; who stores without a policy, updates or deletes does not.

    Raises:
        MemoryExists: When the user has a memory with one of the ids, whatever it duplicates; `index` says which.
        Conflict: When the duplicates changed again and again meanwhile.
    """
    with conn.transaction():
        take_turns(conn, user_id, now=now)
        insert.require_free(conn, user_id, memories)
        decisions = _decide(conn, user_id, memories, duplicates, now=now)
        _insert(conn, user_id, memories, decisions, now=now)
        met = _met(decisions)
        reinforce.reinforce(conn, user_id, [one for one in met if one.reinforcements], now=now)
        successors = {one.id: one.superseded_by for one in met if one.superseded_by is not None}
        delete.supersede(conn, user_id, successors, now=now, purge_at=purge_at)
    return [_receipt(decision, now) for decision in decisions]


def _decide(
    conn: Connection, user_id: str, memories: Sequence[NewMemory], duplicates: Duplicates, *, now: datetime
) -> list[Decision]:
    """Decides about all of them, and locks the duplicates; again when one has changed before it was locked."""
    for _ in range(ATTEMPTS):
        decisions = _decisions(conn, user_id, memories, duplicates, now=now)
        if duplicate_lookup.hold(conn, user_id, [met for met in _met(decisions) if met.stored_before]):
            return decisions
    raise Conflict("the duplicates of these memories keep changing")


def _decisions(
    conn: Connection, user_id: str, memories: Sequence[NewMemory], duplicates: Duplicates, *, now: datetime
) -> list[Decision]:
    policy, min_similarity = duplicates.policy, duplicates.min_similarity
    # One is enough, unless all of them are to go.
    limit = None if policy is DuplicatePolicy.SUPERSEDE else 1
    deciding = Decisions(
        policy,
        memories,
        same_content=duplicate_lookup.same_content(conn, user_id, memories, limit=limit),
        nearest=None
        if min_similarity is None
        else duplicate_lookup.Nearest(conn, user_id, memories, min_similarity=min_similarity),
        min_similarity=min_similarity,
    )
    return [deciding.decide(memory, now=now) for memory in memories]


def _met(decisions: Iterable[Decision]) -> list[Candidate]:
    """Returns the memories that were met as duplicates, each once."""
    met: dict[UUID, Candidate] = {}
    for decision in decisions:
        if decision.match is not None:
            met[decision.match.candidate.id] = decision.match.candidate
        met.update((candidate.id, candidate) for candidate in decision.superseded)
    return list(met.values())


def _insert(
    conn: Connection, user_id: str, memories: Sequence[NewMemory], decisions: Sequence[Decision], *, now: datetime
) -> None:
    stored = [index for index, decision in enumerate(decisions) if decision.stored]
    if not stored:
        return
    if len(memories) == 1:
        insert.insert(conn, user_id, memories[0], now=now)
        return
    try:
        insert.insert_batch(conn, user_id, [memories[index] for index in stored], now=now)
    except MemoryExists as error:  # taken since we looked, by somebody without a policy
        index = None if error.index is None else stored[error.index]
        raise MemoryExists(str(error), index=index) from error


def _receipt(decision: Decision, now: datetime) -> Receipt:
    memory, match = decision.memory, decision.match
    return Receipt(
        outcome=decision.outcome,
        id=memory.id,
        etag=etag(memory.version + 1, now) if memory.changes else etag(memory.version, memory.updated_at),
        created_at=memory.created_at,
        duplicate=None if match is None else Duplicate(match.candidate.id, match.similarity, match.same_content),
    )
