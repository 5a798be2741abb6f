"""From what the database layer returns to the messages of AdminService."""

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from db.api_keys import ApiKey
from db.audit import AuditEntry
from db.erase import UserContents
from db.user_list import UserSummary
from memory_service.v1 import admin_pb2 as pb

# What a repeated field adds to each message, and what next_page_token takes at most.
OVERHEAD_BYTES, TOKEN_BYTES = 5, 2_048

ROLES = {"reader": pb.ROLE_READER, "writer": pb.ROLE_WRITER, "admin": pb.ROLE_ADMIN}
"""The roles as they are stored."""


def fitting(messages: Sequence[Message], *, max_bytes: int) -> int:
    """Returns how many of these, from the first on, make a reply of at most `max_bytes`: one at least."""
    size = 0
    for count, message in enumerate(messages):
        size += message.ByteSize() + OVERHEAD_BYTES
        if size > max_bytes - TOKEN_BYTES and count:
            return count
    return len(messages)


def contents(stored: UserContents) -> pb.UserContents:
    """Returns how much a user has."""
    return pb.UserContents(
        memory_count=stored.memories,
        conversation_count=stored.conversations,
        access_counter_count=stored.access_counters,
        request_id_count=stored.request_ids,
        embedding_job_count=stored.embedding_jobs,
    )


def user(summary: UserSummary) -> pb.UserSummary:
    """Returns a user and its sizes."""
    return pb.UserSummary(
        user_id=summary.user_id,
        created_at=_time(summary.created_at),
        live_count=summary.live_count,
        deleted_count=summary.deleted_count,
        stored_bytes=summary.stored_bytes,
        newest_created_at=_time(summary.newest_created_at),
    )


def api_key(key: ApiKey) -> pb.ApiKey:
    """Returns a key without anything of its secrets."""
    return pb.ApiKey(
        id=key.id,
        name=key.name,
        role=ROLES[key.role],
        all_users=key.everyone,
        user_ids=key.users,
        user_prefixes=key.prefixes,
        created_at=_time(key.created_at),
        expires_at=_time(key.expires_at),
        rotated_at=_time(key.rotated_at),
        revoked_at=_time(key.revoked_at),
        last_used_at=_time(key.last_used_at),
    )


def audit_entry(entry: AuditEntry) -> pb.AuditEntry:
    """Returns an entry of the audit log."""
    return pb.AuditEntry(
        at=_time(entry.at),
        subject=entry.subject,
        method=entry.method,
        user_id=entry.user_id or "",
        memory_ids=map(str, entry.memory_ids),
        memory_count=entry.memory_count,
        key_id=entry.key_id or "",
        request_id=entry.request_id,
        peer=entry.peer,
        code=entry.code or "",
        reason=entry.reason or "",
    )


def _time(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(value)
    return timestamp
