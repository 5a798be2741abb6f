"""The limits of the contract, as GetServerInfo reports them and validation enforces them."""

from dataclasses import dataclass
from datetime import timedelta

from db.languages import DEFAULT_LANGUAGE
from memory_service.config import Settings

KIB = 1_024
MIB = 1_024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for; sizes in bytes unless the name says otherwise."""

    max_id_characters: int = 255
    max_content_bytes: int = 64 * KIB
    max_summary_bytes: int = 16 * KIB
    max_metadata_bytes: int = 16 * KIB
    max_metadata_depth: int = 32
    max_batch_size: int = 500
    max_batch_bytes: int = 8 * MIB
    max_request_bytes: int = 16 * MIB
    # gRPC clients refuse messages over 4 MiB unless told otherwise (milvus-io/milvus#26011).
    max_reply_bytes: int = 3 * MIB + 512 * KIB
    default_search_limit: int = 10
    max_search_limit: int = 1_000
    default_page_size: int = 50
    max_page_size: int = 1_000
    default_conversation_limit: int = 100
    max_conversation_limit: int = 1_000
    max_import_chunk_size: int = 5_000
    max_batch_searches: int = 100
    max_filter_depth: int = 8
    max_filter_conditions: int = 64
    max_filter_values: int = 1_000
    max_candidates: int = 10_000
    max_ef_search: int = 1_000
    max_query_terms: int = 32
    default_language: str = DEFAULT_LANGUAGE
    max_created_at_lead: timedelta = timedelta(days=1)
    deleted_retention: timedelta
    request_id_retention: timedelta
    max_call_duration: timedelta


def limits_of(settings: Settings) -> Limits:
    """Returns the limits in force under these settings."""
    return Limits(
        default_language=settings.language,
        deleted_retention=timedelta(days=settings.deleted_retention_days),
        request_id_retention=timedelta(hours=settings.request_id_retention_hours),
        max_call_duration=timedelta(seconds=settings.statement_timeout_s),
    )
