"""Building reply messages from what the database layer returns."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from db.memory import Memory, NewMemory, etag
from db.search import Hit
from db.stats import UserStats
from memory_service import wire_vectors
from memory_service.v1 import memory_pb2 as pb


def memory(stored: Memory, encoding: pb.VectorEncoding.ValueType = pb.VECTOR_ENCODING_FLOATS) -> pb.Memory:
    """Returns the message for a memory; what its view left out stays unset."""
    message = pb.Memory(
        id=str(stored.id),
        user_id=stored.user_id,
        conversation_id=stored.conversation_id or "",
        content=stored.content or "",
        summary=stored.summary or "",
        importance=stored.importance,
        access_count=stored.access_count,
        embedding_model=stored.embedding_model,
        etag=stored.etag,
        created_at=_timestamp(stored.created_at),
        updated_at=_timestamp(stored.updated_at),
    )
    if stored.metadata:
        message.metadata.update(stored.metadata)
    if stored.embedding is not None:
        message.embedding.CopyFrom(wire_vectors.write(stored.embedding, encoding))
    if stored.last_accessed_at is not None:
        message.last_accessed_at.FromDatetime(stored.last_accessed_at)
    if stored.deleted_at is not None and stored.purge_at is not None:
        message.deleted_at.FromDatetime(stored.deleted_at)
        message.purge_at.FromDatetime(stored.purge_at)
    return message


def inserted(user_id: str, new: NewMemory, *, now: datetime) -> pb.Memory:
    """Returns the message for a memory just inserted, without its embedding."""
    return memory(
        Memory(
            id=new.id,
            user_id=user_id,
            conversation_id=new.conversation_id,
            importance=new.importance,
            version=1,
            embedding_model=new.embedding_model,
            created_at=new.created_at,
            updated_at=now,
            deleted_at=None,
            purge_at=None,
            access_count=0,
            last_accessed_at=None,
            content=new.content,
            summary=new.summary,
            metadata=new.metadata,
        )
    )


def insert_result(new: NewMemory, *, now: datetime) -> pb.InsertResult:
    """Returns the receipt for one memory of a batch."""
    return pb.InsertResult(id=str(new.id), etag=etag(1, now), created_at=_timestamp(new.created_at))


def search(hits: list[Hit], encoding: pb.VectorEncoding.ValueType) -> pb.SearchSimilarResponse:
    """Returns the reply of SearchSimilar."""
    return pb.SearchSimilarResponse(
        results=[pb.SearchResult(memory=memory(hit.memory, encoding), score=hit.score) for hit in hits]
    )


def stats(user: UserStats) -> pb.GetStatsResponse:
    """Returns the reply of GetStats."""
    message = pb.GetStatsResponse(
        live_count=user.live_count,
        deleted_count=user.deleted_count,
        average_importance=user.average_importance,
        total_accesses=user.total_accesses,
        stored_bytes=user.stored_bytes,
        conversation_count=user.conversation_count,
        conversations=[
            pb.ConversationStats(
                conversation_id=conversation.conversation_id or "",
                live_count=conversation.live_count,
                deleted_count=conversation.deleted_count,
                newest_created_at=_timestamp(conversation.newest_created_at),
            )
            for conversation in user.conversations
        ],
    )
    if user.oldest_created_at is not None and user.newest_created_at is not None:
        message.oldest_created_at.FromDatetime(user.oldest_created_at)
        message.newest_created_at.FromDatetime(user.newest_created_at)
    return message


def _timestamp(value: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(value)
    return timestamp
