"""The limits of the contract are the numbers it names."""

from datetime import timedelta

from memory_service import config
from memory_service.limits import limits_of
from memory_service.settings.embedding import MAX_DIMENSIONS


def test_sizes_are_those_of_the_contract() -> None:
    limits = limits_of(config.load())
    assert limits.max_id_characters == 255
    assert limits.max_content_bytes == 65_536
    assert limits.max_summary_bytes == 16_384
    assert limits.max_metadata_bytes == 16_384
    assert limits.max_metadata_depth == 32
    assert limits.max_batch_size == 500
    assert limits.max_search_limit == 1_000
    assert (limits.default_search_limit, limits.default_page_size) == (10, 50)
    # Below what gRPC clients accept by default.
    assert limits.max_reply_bytes < 4 * 1_024 * 1_024
    # A batch fits a request, and the largest memory fits a reply.
    assert limits.max_batch_bytes < limits.max_request_bytes
    largest = limits.max_content_bytes + limits.max_summary_bytes + limits.max_metadata_bytes
    assert largest + 4 * MAX_DIMENSIONS < limits.max_reply_bytes


def test_times_are_those_of_the_settings() -> None:
    settings = config.load(deleted_retention_days=0.5, request_id_retention_hours=2, statement_timeout_s=3)
    limits = limits_of(settings)
    assert limits.deleted_retention == timedelta(hours=12)
    assert limits.request_id_retention == timedelta(hours=2)
    assert limits.max_call_duration == timedelta(seconds=3)
