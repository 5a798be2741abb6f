"""Building reply messages from what the database layer returns."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from db.duplicate_decisions import InsertOutcome
from db.duplicates import Duplicate, Receipt
from db.memory import EmbeddingState, Memory, NewMemory, etag
from db.search_plan import Plan
from db.stats import UserStats
from memory_service.messages import explanations, wire_vectors
from memory_service.ranking.options import Mode
from memory_service.search_outcome import Outcome
from memory_service.v1 import memory_pb2 as pb

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_A_DAY = 86_400


EMBEDDING_STATES = {
    EmbeddingState.READY: pb.EMBEDDING_STATE_READY,
    EmbeddingState.PENDING: pb.EMBEDDING_STATE_PENDING,
    EmbeddingState.FAILED: pb.EMBEDDING_STATE_FAILED,
}


def memory(stored: Memory, encoding: pb.VectorEncoding.ValueType = pb.VECTOR_ENCODING_FLOATS) -> pb.Memory:
    """Returns the message for a memory; what its view left out stays unset."""
    message = pb.Memory()
    _fill(message, stored, encoding)
    return message


def _fill(message: pb.Memory, stored: Memory, encoding: pb.VectorEncoding.ValueType) -> None:
    # In place, where the message stands in its reply: building messages to put them into others copies each of them
    # twice (10 results: 164 µs, against 70 µs).
    message.id = str(stored.id)
    message.user_id = stored.user_id
    message.conversation_id = stored.conversation_id or ""
    message.content = stored.content or ""
    message.summary = stored.summary or ""
    message.importance = stored.importance
    message.access_count = stored.access_count
    message.embedding_model = stored.embedding_model
    message.etag = stored.etag
    _set_time(message.created_at, stored.created_at)
    _set_time(message.updated_at, stored.updated_at)
    if stored.language is not None:
        message.language = stored.language
    if stored.embedding_state is not None:
        message.embedding_state = EMBEDDING_STATES[stored.embedding_state]
    if stored.superseded_by is not None:
        message.superseded_by = str(stored.superseded_by)
    if stored.metadata:
        message.metadata.update(stored.metadata)
    if stored.embedding is not None:
        message.embedding.CopyFrom(wire_vectors.write(stored.embedding, encoding))
    if stored.last_accessed_at is not None:
        _set_time(message.last_accessed_at, stored.last_accessed_at)
    if stored.deleted_at is not None and stored.purge_at is not None:
        _set_time(message.deleted_at, stored.deleted_at)
        _set_time(message.purge_at, stored.purge_at)


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
            language=new.language,
            embedding_state=EmbeddingState.PENDING if new.embedding is None else EmbeddingState.READY,
        )
    )


OUTCOMES = {
    InsertOutcome.STORED: pb.INSERT_OUTCOME_STORED,
    InsertOutcome.SKIPPED: pb.INSERT_OUTCOME_SKIPPED,
    InsertOutcome.REINFORCED: pb.INSERT_OUTCOME_REINFORCED,
    InsertOutcome.SUPERSEDED: pb.INSERT_OUTCOME_SUPERSEDED,
}


def insert_result(new: NewMemory, *, now: datetime) -> pb.InsertResult:
    """Returns the receipt for one memory of a batch, which was stored."""
    return pb.InsertResult(
        id=str(new.id),
        etag=etag(1, now),
        created_at=_timestamp(new.created_at),
        outcome=pb.INSERT_OUTCOME_STORED,
    )


def insert_receipt(receipt: Receipt) -> pb.InsertResult:
    """Returns the receipt for one memory of a batch under a policy for duplicates."""
    return pb.InsertResult(
        id=str(receipt.id),
        etag=receipt.etag,
        created_at=_timestamp(receipt.created_at),
        outcome=OUTCOMES[receipt.outcome],
        duplicate=None if receipt.duplicate is None else duplicate(receipt.duplicate),
    )


def duplicate(met: Duplicate) -> pb.Duplicate:
    """Returns the message for a duplicate that was met."""
    return pb.Duplicate(id=str(met.id), similarity=met.similarity, same_content=met.same_content)


PLANS = {
    Plan.EXACT: pb.SEARCH_PLAN_EXACT,
    Plan.QUANTIZED: pb.SEARCH_PLAN_QUANTIZED,
    Plan.ANN: pb.SEARCH_PLAN_ANN,
    Plan.LEXICAL: pb.SEARCH_PLAN_LEXICAL,
}
MODES = {
    Mode.DENSE: pb.SEARCH_MODE_DENSE,
    Mode.LEXICAL: pb.SEARCH_MODE_LEXICAL,
    Mode.HYBRID: pb.SEARCH_MODE_HYBRID,
}


def search(
    outcome: Outcome, encoding: pb.VectorEncoding.ValueType, *, explain: bool = False
) -> pb.SearchSimilarResponse:
    """Returns the reply of SearchSimilar, without its timing."""
    message = pb.SearchSimilarResponse(
        plan=PLANS[outcome.plan],
        candidates_considered=outcome.considered,
        maybe_incomplete=outcome.maybe_incomplete,
        mode=MODES[outcome.mode],
        formula=outcome.formula,
    )
    for rank, found in enumerate(outcome.results, start=1):
        result = message.results.add(score=found.score)
        _fill(result.memory, found.memory, encoding)
        if found.ranked is not None and found.ranked.collapsed:
            result.collapsed_ids.extend(map(str, found.ranked.collapsed))
        if found.surroundings is not None:
            for one in found.surroundings.before:
                _fill(result.before.add(), one, encoding)
            for one in found.surroundings.after:
                _fill(result.after.add(), one, encoding)
        if explain:
            explanations.fill(result.explanation, found, outcome, rank=rank)
    if explain:
        explanations.fill_terms(message, outcome.terms)
    return message


def set_timing(
    message: pb.ServerTiming, *, total_s: float, pool_wait_s: float, database_s: float, embedding_s: float
) -> None:
    """Fills in where a call spent its time."""
    message.total.FromNanoseconds(round(total_s * 1e9))
    message.pool_wait.FromNanoseconds(round(pool_wait_s * 1e9))
    message.database.FromNanoseconds(round(database_s * 1e9))
    message.embedding.FromNanoseconds(round(embedding_s * 1e9))


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
        _set_time(message.oldest_created_at, user.oldest_created_at)
        _set_time(message.newest_created_at, user.newest_created_at)
    return message


def _timestamp(value: datetime) -> Timestamp:
    timestamp = Timestamp()
    _set_time(timestamp, value)
    return timestamp


def _set_time(timestamp: Timestamp, value: datetime) -> None:
    # A quarter of the time that FromDatetime takes.
    since = value - _EPOCH
    timestamp.seconds = since.days * _SECONDS_A_DAY + since.seconds
    timestamp.nanos = since.microseconds * 1_000
