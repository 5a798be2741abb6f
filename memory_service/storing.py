"""Storing new memories inside a transaction, with or without a policy for duplicates, and the replies to it."""

from collections.abc import Sequence
from datetime import datetime

from db import duplicates, fetch, insert
from db.connection import Connection
from db.duplicates import Duplicates
from db.memory import NewMemory, View
from memory_service import chunk_receipts
from memory_service.messages import replies
from memory_service.v1 import memory_pb2 as pb


def one(
    conn: Connection, user_id: str, memory: NewMemory, policy: Duplicates | None, *, now: datetime, purge_at: datetime
) -> pb.InsertVectorResponse:
    """Stores a memory, or does what the policy says; `purge_at` is that of memories it supersedes."""
    if policy is None:
        insert.insert(conn, user_id, memory, now=now)
        return _stored(user_id, memory, now)
    with conn.transaction():
        [receipt] = duplicates.store(conn, user_id, [memory], policy, now=now, purge_at=purge_at)
        if receipt.id == memory.id:
            reply = _stored(user_id, memory, now)
        else:
            # Still the one that was met: it is locked until the transaction ends.
            met = fetch.fetch(conn, user_id, receipt.id, view=View.BASIC)
            reply = pb.InsertVectorResponse(memory=replies.memory(met))
    reply.outcome = replies.OUTCOMES[receipt.outcome]
    if receipt.duplicate is not None:
        reply.duplicate.CopyFrom(replies.duplicate(receipt.duplicate))
    return reply


def _stored(user_id: str, memory: NewMemory, now: datetime) -> pb.InsertVectorResponse:
    message = replies.inserted(user_id, memory, now=now)
    return pb.InsertVectorResponse(memory=message, outcome=pb.INSERT_OUTCOME_STORED)


def batch(
    conn: Connection,
    user_id: str,
    memories: Sequence[NewMemory],
    policy: Duplicates | None,
    *,
    now: datetime,
    purge_at: datetime,
) -> pb.BatchInsertVectorsResponse:
    """Stores memories in order, all or none, or does what the policy says."""
    if policy is None:
        insert.insert_batch(conn, user_id, memories, now=now)
        return pb.BatchInsertVectorsResponse(results=[replies.insert_result(memory, now=now) for memory in memories])
    receipts = duplicates.store(conn, user_id, memories, policy, now=now, purge_at=purge_at)
    return pb.BatchInsertVectorsResponse(results=[replies.insert_receipt(receipt) for receipt in receipts])


def chunk(
    conn: Connection,
    user_id: str,
    memories: Sequence[NewMemory],
    policy: Duplicates | None,
    *,
    now: datetime,
    purge_at: datetime,
) -> bytes:
    """Stores a chunk of an import likewise; returns what to remember of it."""
    if policy is None:
        insert.insert_batch(conn, user_id, memories, now=now)
        return chunk_receipts.pack_ids(memories)
    return chunk_receipts.pack(duplicates.store(conn, user_id, memories, policy, now=now, purge_at=purge_at))
