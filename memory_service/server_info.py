"""What GetServerInfo tells: versions, the embedding space, and every limit."""

from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from memory_service.limits import Limits
from memory_service.v1 import memory_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What is known of the server once it runs."""

    version: str
    schema_revision: str
    postgres_version: str
    pgvector_version: str
    embedder: str
    embedding_model: str
    embedding_dimensions: int


def server_info(facts: ServerFacts, limits: Limits) -> pb.GetServerInfoResponse:
    """Returns the reply of GetServerInfo."""
    return pb.GetServerInfoResponse(
        version=facts.version,
        schema_revision=facts.schema_revision,
        postgres_version=facts.postgres_version,
        pgvector_version=facts.pgvector_version,
        embedder=facts.embedder,
        embedding_model=facts.embedding_model,
        embedding_dimensions=facts.embedding_dimensions,
        limits=_limits(limits),
    )


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
        max_call_duration=_duration(values.max_call_duration),
    )


def _duration(value: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(value)
    return duration
