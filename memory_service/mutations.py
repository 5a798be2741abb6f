"""Running a change once: directly, or under a request id that a repeated call is recognized by."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message

from db import requests
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.requests import AnyKey, OperatorRequestKey, RequestKey
from db.wall import Whose
from memory_service.messages.fields import FieldReader
from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb

Reply = TypeVar("Reply", bound=Message)
Mutation = (
    pb.InsertVectorRequest
    | pb.BatchInsertVectorsRequest
    | pb.UpdateVectorRequest
    | pb.DeleteVectorRequest
    | pb.RestoreVectorRequest
)


OperatorMutation = (
    admin_pb2.EraseUserRequest
    | admin_pb2.PurgeExpiredRequest
    | admin_pb2.SetUserQuotaRequest
    | admin_pb2.CreateApiKeyRequest
    | admin_pb2.RotateApiKeyRequest
    | admin_pb2.RevokeApiKeyRequest
    | admin_pb2.ClearDatabaseRequest
)


def read_key(fields: FieldReader, request: Mutation, *, now: datetime) -> RequestKey | None:
    """Reads a mutating request's request_id; None where it has none."""
    request_id = fields.optional_uuid("request_id", request.request_id)
    if request_id is None:
        return None
    return RequestKey(
        user_id=request.user_id,
        request_id=request_id,
        request_hash=_hash_of(request),
        expires_at=now + fields.limits.request_id_retention,
    )


def read_operator_key(fields: FieldReader, request: OperatorMutation, *, now: datetime) -> OperatorRequestKey | None:
    """Reads an administrator's request_id likewise."""
    request_id = fields.optional_uuid("request_id", request.request_id)
    if request_id is None:
        return None
    return OperatorRequestKey(
        request_id=request_id,
        request_hash=_hash_of(request),
        expires_at=now + fields.limits.request_id_retention,
    )


def _hash_of(request: Message) -> bytes:
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(content).digest()


def run(
    database: Database,
    call: Call,
    key: AnyKey | None,
    *,
    user_id: Whose,
    prepare: Callable[[], Callable[[Connection], Reply]],
    reply: type[Reply],
    now: datetime,
) -> Reply:
    """Runs a change, or returns what it replied the first time.

    `prepare` does what needs no transaction, above all embedding, and returns the change itself; it is not called
    for a repeated request, which so succeeds even while the embedder is down.

    Raises:
        RequestIdReused: When the request id was used for another request.
    """
    if key is None:
        return database.write(call, prepare(), user_id=user_id)

    def find() -> bytes | None:
        return database.read(call, lambda conn: requests.find(conn, key, now=now), user_id=user_id)

    known = find()
    if known is not None:
        return reply.FromString(known)
    try:
        change = prepare()
    except Exception:
        # The first call with this id may have ended since we looked: it has then used up the etag, or the quota.
        if (known := find()) is None:
            raise
        return reply.FromString(known)
    stored = database.write(
        call,
        lambda conn: requests.once(conn, key, lambda: change(conn).SerializeToString(), now=now),
        user_id=user_id,
    )
    return reply.FromString(stored)
