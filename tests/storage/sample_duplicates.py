"""Bringing memories under a policy for duplicates in tests, with embeddings of known similarity."""

from dataclasses import replace
from uuid import UUID

import numpy as np

from db import duplicates
from db.duplicate_decisions import DuplicatePolicy
from db.duplicates import Duplicates, Receipt
from db.memory import NewMemory
from db.pool import Database
from db.vectors import Embedding, normalize
from tests.storage.sample_memories import DIMENSIONS, LATER, PURGE_AT, rows

SKIP = Duplicates(policy=DuplicatePolicy.SKIP)
REINFORCE = Duplicates(policy=DuplicatePolicy.REINFORCE)
SUPERSEDE = Duplicates(policy=DuplicatePolicy.SUPERSEDE)
POLICIES = [SKIP, REINFORCE, SUPERSEDE]


def near(policy: Duplicates, min_similarity: float | None = 0.9) -> Duplicates:
    """Returns the policy for similar memories too."""
    return replace(policy, min_similarity=min_similarity)


def at(degrees: float) -> Embedding:
    """Returns the embedding at this angle to the first axis: the cosine of two is that of the angle between them."""
    vector = np.zeros(DIMENSIONS)
    vector[:2] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return normalize(vector)


def bring(database: Database, user_id: str, policy: Duplicates, *memories: NewMemory) -> list[Receipt]:
    """Stores memories under a policy, an hour after those stored without."""
    return database.write(
        database.call(),
        lambda conn: duplicates.store(conn, user_id, memories, policy, now=LATER, purge_at=PURGE_AT),
        user_id=user_id,
    )


def live_ids(database: Database, user_id: str) -> set[UUID]:
    """Returns the ids of the user's live memories."""
    found = rows(database, b"SELECT id FROM memory_entries WHERE user_id = %s AND deleted_at IS NULL", [user_id])
    return {row[0] for row in found}
