"""What GetServerInfo tells: versions, the embedding space, every limit, and what the database is busy with."""

from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from db.ann_catalog import IndexInfo, IndexState
from db.embedding_queue_state import QueueCounts
from db.languages import LANGUAGES
from db.reembedding import Phase, Progress, Reembedding
from db.schema import EmbeddingSpace
from db.stored_state import StoredState
from memory_service.limits import Limits
from memory_service.messages.ranking_request import CLOCKS, PRESET_NAMES, RankingDefaults
from memory_service.ranking.presets import PRESETS
from memory_service.v1 import memory_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What is known of the server once it runs, and stays so."""

    version: str
    schema_revision: str
    postgres_version: str
    pgvector_version: str


@dataclass(frozen=True, slots=True)
class Serving:
    """What the server works with at the moment."""

    embedder: str
    space: EmbeddingSpace


_STATES = {
    IndexState.READY: pb.ANN_INDEX_STATE_READY,
    IndexState.BUILDING: pb.ANN_INDEX_STATE_BUILDING,
    IndexState.INVALID: pb.ANN_INDEX_STATE_INVALID,
}


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What the database is busy with."""

    stored: StoredState
    backfill: Progress | None
    """How far the move to another model is; None where nobody has counted."""


def server_info(
    facts: ServerFacts, serving: Serving, limits: Limits, ranking: RankingDefaults, state: DatabaseState | None
) -> pb.GetServerInfoResponse:
    """Returns the reply of GetServerInfo; `state` is None while the database is out of reach."""
    return pb.GetServerInfoResponse(
        version=facts.version,
        schema_revision=facts.schema_revision,
        postgres_version=facts.postgres_version,
        pgvector_version=facts.pgvector_version,
        embedder=serving.embedder,
        embedding_model=serving.space.model,
        embedding_dimensions=serving.space.dimensions,
        limits=_limits(limits),
        languages=LANGUAGES,
        default_language=limits.default_language,
        default_ranking=_ranking(ranking.preset),
        default_dense_weight=ranking.dense_weight,
        ann_indexes=[] if state is None else [_ann_index(index) for index in state.stored.indexes],
        embedding_queue=None if state is None else _embedding_queue(state.stored.queue),
        reembedding=None if state is None or state.stored.move is None else _move(state.stored.move, state.backfill),
    )


_PHASES = {Phase.BACKFILL: pb.REEMBEDDING_PHASE_BACKFILL, Phase.SWITCHED: pb.REEMBEDDING_PHASE_SWITCHED}


def _move(move: Reembedding, backfill: Progress | None) -> pb.Reembedding:
    target = move.standby if move.phase is Phase.BACKFILL else move.live
    message = pb.Reembedding(target_model=target.model, target_dimensions=target.dimensions, phase=_PHASES[move.phase])
    if backfill is not None and move.phase is Phase.BACKFILL:
        message.total_count = backfill.total
        message.fresh_count = backfill.fresh
        message.refused_count = backfill.refused
    return message


def _embedding_queue(counts: QueueCounts) -> pb.EmbeddingQueue:
    message = pb.EmbeddingQueue(pending_count=counts.pending, failed_count=counts.failed)
    if counts.oldest_queued_at is not None:
        message.oldest_pending_at.FromDatetime(counts.oldest_queued_at)
    return message


def _ranking(preset: str) -> pb.Ranking:
    """Returns the preset with what it stands for."""
    boosts = PRESETS[preset]
    return pb.Ranking(
        preset=next(value for value, name in PRESET_NAMES.items() if value and name == preset),
        recency_weight=boosts.recency_weight,
        half_life=_duration(timedelta(seconds=boosts.half_life_s)),
        clock=next(value for value, clock in CLOCKS.items() if clock is boosts.clock),
        importance_weight=boosts.importance_weight,
        access_weight=boosts.access_weight,
    )


def _ann_index(index: IndexInfo) -> pb.AnnIndex:
    message = pb.AnnIndex(
        name=index.name,
        method=index.method,
        state=_STATES[index.state],
        bytes=index.bytes,
        scans=index.scans,
    )
    setattr(message, "global", index.is_global)  # a keyword of Python
    return message


def _limits(values: Limits) -> pb.Limits:
    return pb.Limits(
        max_id_characters=values.max_id_characters,
        max_content_bytes=values.max_content_bytes,
        max_summary_bytes=values.max_summary_bytes,
        max_metadata_bytes=values.max_metadata_bytes,
        max_metadata_depth=values.max_metadata_depth,
        max_batch_size=values.max_batch_size,
        max_batch_bytes=values.max_batch_bytes,
        max_request_bytes=values.max_request_bytes,
        max_reply_bytes=values.max_reply_bytes,
        default_search_limit=values.default_search_limit,
        max_search_limit=values.max_search_limit,
        default_page_size=values.default_page_size,
        max_page_size=values.max_page_size,
        max_conversation_limit=values.max_conversation_limit,
        deleted_retention=_duration(values.deleted_retention),
        request_id_retention=_duration(values.request_id_retention),
        max_import_chunk_size=values.max_import_chunk_size,
        max_batch_searches=values.max_batch_searches,
        max_filter_depth=values.max_filter_depth,
        max_filter_conditions=values.max_filter_conditions,
        max_filter_values=values.max_filter_values,
        max_candidates=values.max_candidates,
        max_ef_search=values.max_ef_search,
        max_query_terms=values.max_query_terms,
        max_call_duration=_duration(values.max_call_duration),
    )


def _duration(value: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(value)
    return duration
