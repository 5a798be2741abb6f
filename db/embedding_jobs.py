"""The durable queue of memories that wait for their embedding: what puts jobs into it, takes them and ends them.

A job is there exactly as long as its memory has no embedding. It is taken by moving next_attempt_at to the end of a
lease: a process that dies keeps nobody waiting longer than that. That time also tells whose a job is: whoever comes
back after the lease, when somebody else has taken it, changes nothing of it.

Whoever locks both locks the memory before its job.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import UUID

from db import sign_bits
from db.bulk_insert import array, halfvecs
from db.connection import Connection
from db.embedding_turns import Turns
from db.memory import NewMemory
from db.vectors import Embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob:
    """A job that was taken."""

    user_id: str
    id: UUID
    """The memory's."""
    text: str
    """What is to be embedded."""
    content_hash: int
    """Of the memory's content when the job was taken."""
    attempts: int
    """How often it was taken, this time included."""
    leased_until: datetime


ENQUEUE = """/* embedding_jobs.enqueue */
INSERT INTO embedding_jobs (user_id, id, embed_text, queued_at, next_attempt_at)
SELECT %(user_id)s, id, embed_text, %(now)s, %(now)s
FROM unnest(%(ids)s::uuid[], %(embed_texts)s::text[]) AS given (id, embed_text)
"""


def enqueue(conn: Connection, user_id: str, memories: Sequence[NewMemory], *, now: datetime) -> None:
    """Adds a job for each of the memories that has no embedding, in the transaction that stores them."""
    waiting = [memory for memory in memories if memory.embedding is None]
    if not waiting:
        return
    ids = [memory.id for memory in waiting]
    embed_texts = [memory.embed_text for memory in waiting]
    conn.query(ENQUEUE, {"user_id": user_id, "ids": ids, "embed_texts": embed_texts, "now": now})


# Whose jobs are looked at for one batch. Were there more users, each would get too little for a request to be worth it.
USERS_OF_A_BATCH = 16

# The rows others are taking at the moment are left to them.
_OF_EACH = """
    SELECT job.user_id, job.id
    FROM unnest(%(users)s::text[]) AS given (user_id)
    CROSS JOIN LATERAL (
        SELECT user_id, id FROM embedding_jobs
        WHERE user_id = given.user_id AND failed_at IS NULL AND next_attempt_at <= %(now)s
        ORDER BY next_attempt_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) job"""
_OLDEST = """
    SELECT user_id, id
    FROM embedding_jobs
    WHERE failed_at IS NULL AND next_attempt_at <= %(now)s
    ORDER BY next_attempt_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED"""
_TAKE = """
WITH due AS MATERIALIZED ({due}
), taken AS (
    UPDATE embedding_jobs j
    SET attempts = attempts + 1, next_attempt_at = %(leased_until)s
    FROM due
    WHERE j.user_id = due.user_id AND j.id = due.id
    RETURNING j.user_id, j.id, j.embed_text, j.attempts, j.queued_at
)
SELECT taken.user_id, taken.id, coalesce(taken.embed_text, m.content), m.content_hash, taken.attempts
FROM taken
JOIN memory_entries m ON m.user_id = taken.user_id AND m.id = taken.id
ORDER BY taken.queued_at, taken.id
"""
TAKE_OF_EACH = "/* embedding_jobs.take_of_each */" + _TAKE.format(due=_OF_EACH)
TAKE = "/* embedding_jobs.take */" + _TAKE.format(due=_OLDEST)


def take(
    conn: Connection, *, now: datetime, leased_until: datetime, limit: int, turns: Turns | None = None
) -> list[EmbeddingJob]:
    """Takes up to `limit` jobs that are due; nobody else gets them before `leased_until`.

    The oldest, whoever they belong to. With `turns`, users whose turn it is get equal shares first, each of them the
    oldest of theirs: a million jobs of one user delay nobody else's.
    """
    lease = {"now": now, "leased_until": leased_until}
    jobs: list[EmbeddingJob] = []
    with conn.transaction():
        if turns is not None and (users := turns.next(conn, users=min(limit, USERS_OF_A_BATCH))):
            shares = lease | {"users": users, "limit": limit // len(users)}
            jobs = _jobs(conn.query(TAKE_OF_EACH, shares).fetchall(), leased_until)
        if len(jobs) < limit:
            jobs += _jobs(conn.query(TAKE, lease | {"limit": limit - len(jobs)}).fetchall(), leased_until)
    return jobs


def _jobs(rows: Sequence[Sequence[Any]], leased_until: datetime) -> list[EmbeddingJob]:
    return [
        EmbeddingJob(
            user_id=user_id,
            id=memory_id,
            text=text,
            content_hash=content_hash,
            attempts=attempts,
            leased_until=leased_until,
        )
        for user_id, memory_id, text, content_hash, attempts in rows
    ]


# A memory that has an embedding by now, or another content, keeps what it has. Neither its version nor updated_at
# change: a caller who has its etag has seen all of it that a caller can change.
_EMBED = """/* embedding_jobs.embed */
WITH waiting AS (
    SELECT m.user_id, m.id, given.embedding, given.norm
    FROM unnest(%(user_ids)s::text[], %(ids)s::uuid[], %(hashes)s::bigint[], %(embeddings)b::halfvec[],
        %(norms)s::float8[]) AS given (user_id, id, content_hash, embedding, norm)
    JOIN memory_entries m ON m.user_id = given.user_id AND m.id = given.id
    WHERE m.embedding IS NULL AND m.content_hash = given.content_hash
    ORDER BY m.user_id, m.id  -- processes that hold the same jobs lock in one order
    FOR NO KEY UPDATE OF m
)
UPDATE memory_entries m
SET embedding = waiting.embedding, embedding_norm = waiting.norm, embedding_model = %(model)s,
    embedding_error = NULL{signs}
FROM waiting
WHERE m.user_id = waiting.user_id AND m.id = waiting.id
"""
EMBED = _EMBED.format(signs="")
EMBED_WITH_BITS = _EMBED.format(signs=", bits = binary_quantize(waiting.embedding)")

FINISH = """/* embedding_jobs.finish */
DELETE FROM embedding_jobs j
USING unnest(%(user_ids)s::text[], %(ids)s::uuid[]) AS given (user_id, id)
WHERE j.user_id = given.user_id AND j.id = given.id AND EXISTS (
    SELECT FROM memory_entries m WHERE m.user_id = j.user_id AND m.id = j.id AND m.embedding IS NOT NULL)
"""


def complete(conn: Connection, jobs: Sequence[EmbeddingJob], embeddings: Sequence[Embedding], *, model: str) -> int:
    """Gives memories their embeddings and ends their jobs; returns how many memories still wanted theirs."""
    parameters: dict[str, Any] = {
        "user_ids": [job.user_id for job in jobs],
        "ids": [job.id for job in jobs],
        "hashes": [job.content_hash for job in jobs],
        "embeddings": array(conn.halfvec_oid, chain.from_iterable(halfvecs([one]) for one in embeddings)),
        "norms": [embedding.norm for embedding in embeddings],
        "model": model,
    }
    with conn.transaction():
        statement = EMBED_WITH_BITS if sign_bits.kept_beside(embeddings) else EMBED
        count = conn.query(statement, parameters).rowcount
        conn.query(FINISH, parameters)
    return count


POSTPONE = """/* embedding_jobs.postpone */
UPDATE embedding_jobs j
SET next_attempt_at = given.next_attempt_at, attempts = j.attempts - %(returned)s,
    last_error = coalesce(%(error)s, j.last_error)
FROM unnest(%(user_ids)s::text[], %(ids)s::uuid[], %(leases)s::timestamptz[], %(times)s::timestamptz[])
    AS given (user_id, id, leased_until, next_attempt_at)
WHERE j.user_id = given.user_id AND j.id = given.id AND j.next_attempt_at = given.leased_until
    AND j.failed_at IS NULL
"""


def postpone(conn: Connection, jobs: Sequence[EmbeddingJob], times: Sequence[datetime], *, error: str) -> None:
    """Gives jobs back, each until its time, after an attempt that failed."""
    conn.query(POSTPONE, _held(jobs, times) | {"returned": 0, "error": error})


def release(conn: Connection, jobs: Sequence[EmbeddingJob], *, until: datetime, error: str | None = None) -> None:
    """Gives jobs back until a time, as if they had not been tried."""
    conn.query(POSTPONE, _held(jobs, [until] * len(jobs)) | {"returned": 1, "error": error})


def _held(jobs: Sequence[EmbeddingJob], times: Sequence[datetime]) -> dict[str, Any]:
    return {
        "user_ids": [job.user_id for job in jobs],
        "ids": [job.id for job in jobs],
        "leases": [job.leased_until for job in jobs],
        "times": list(times),
    }


GIVE_UP = """/* embedding_jobs.give_up */
WITH memory AS (
    SELECT FROM memory_entries
    WHERE user_id = %(user_id)s AND id = %(id)s AND embedding IS NULL
    FOR NO KEY UPDATE
), job AS (
    UPDATE embedding_jobs
    SET failed_at = %(now)s, last_error = %(error)s
    WHERE user_id = %(user_id)s AND id = %(id)s AND next_attempt_at = %(leased_until)s AND failed_at IS NULL
        AND EXISTS (SELECT FROM memory)
    RETURNING user_id, id
)
UPDATE memory_entries m
SET embedding_error = %(error)s
FROM job
WHERE m.user_id = %(user_id)s AND m.user_id = job.user_id AND m.id = job.id
"""


def give_up(conn: Connection, job: EmbeddingJob, *, error: str, now: datetime) -> None:
    """Ends a job for good: it stays, with its error, until its memory gets an embedding or it is tried again."""
    conn.query(
        GIVE_UP,
        {"user_id": job.user_id, "id": job.id, "leased_until": job.leased_until, "error": error, "now": now},
    )
