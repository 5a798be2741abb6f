"""Reinforcing memories: who brings one again has thought of it once more."""

from collections.abc import Sequence
from datetime import datetime

from db import access
from db.access import Accesses
from db.connection import Connection
from db.duplicate_decisions import Candidate

RAISE_IMPORTANCE = """/* reinforce.importance */
UPDATE memory_entries m
SET importance = given.importance, version = version + 1, updated_at = %(now)s
FROM unnest(%(ids)s::uuid[], %(importances)s::smallint[]) AS given (id, importance)
WHERE m.user_id = %(user_id)s AND m.id = given.id
"""


def reinforce(conn: Connection, user_id: str, memories: Sequence[Candidate], *, now: datetime) -> None:
    """Counts the accesses that the memories have earned, and raises their importance where it has become higher.

    The caller holds them, in a transaction.
    """
    if raised := [memory for memory in memories if memory.changes]:
        parameters = {
            "user_id": user_id,
            "ids": [memory.id for memory in raised],
            "importances": [memory.raised_importance for memory in raised],
            "now": now,
        }
        conn.query(RAISE_IMPORTANCE, parameters)
    if memories:
        # In key order, as the access buffer writes: each may hold counters that the other waits for.
        ordered = sorted(memories, key=lambda memory: memory.id)
        counted = [((user_id, memory.id.int), Accesses(memory.reinforcements, now)) for memory in ordered]
        access.write_accesses(conn, counted)
