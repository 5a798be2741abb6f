"""From exceptions to statuses: every error of ours has its code, and none of its own tells too much."""

import inspect
from datetime import timedelta

import grpc
import psycopg
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from db import errors as db
from memory_service import errors
from memory_service.embedding import errors as embedding
from memory_service.errors import DOMAIN, reason_name, to_failure, to_status
from memory_service.messages.page_token import InvalidPageToken
from memory_service.messages.violations import InvalidArgument, Violation
from memory_service.method_handlers import MalformedRequest
from memory_service.v1 import memory_pb2 as pb

SQL = "SELECT content FROM memory_entries"
URL = "postgresql://me:hush@host/memory"

CASES: list[tuple[Exception, grpc.StatusCode, str, tuple[float, float] | None]] = [
    (db.MemoryNotFound("m"), grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND", None),
    (db.MemoryExists("m", index=3), grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS", None),
    (db.MemoryDeleted("m"), grpc.StatusCode.FAILED_PRECONDITION, "MEMORY_DELETED", None),
    (db.MemoryNotDeleted("m"), grpc.StatusCode.ALREADY_EXISTS, "MEMORY_NOT_DELETED", None),
    (db.EmbeddingPending("m"), grpc.StatusCode.FAILED_PRECONDITION, "EMBEDDING_PENDING", None),
    (db.EtagMismatch("m"), grpc.StatusCode.ABORTED, "ETAG_MISMATCH", None),
    (db.RequestIdReused("m"), grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED", None),
    (db.ReplyTooLarge(count=2, size=9, allowed=8), grpc.StatusCode.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE", None),
    (db.InvalidValue("m"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
    (db.Conflict("m"), grpc.StatusCode.ABORTED, "CONFLICT", None),
    (db.StatementTimeout("m"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", None),
    (db.CallCancelled("m"), grpc.StatusCode.CANCELLED, "CANCELLED", None),
    (db.PoolExhausted("m"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", (0.125, 0.375)),
    (db.StorageFull("m"), grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", None),
    (db.DatabaseUnavailable("m"), grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", (1.0, 1.0)),
    (db.EmbeddingSpaceChanged("m"), grpc.StatusCode.UNAVAILABLE, "EMBEDDING_SPACE_CHANGED", (0.5, 0.5)),
    (db.SchemaMismatch("m"), grpc.StatusCode.FAILED_PRECONDITION, "SCHEMA_MISMATCH", None),
    (db.UnsupportedDatabase("m"), grpc.StatusCode.FAILED_PRECONDITION, "SCHEMA_MISMATCH", None),
    (embedding.RequestGivenUp("m", retry_after_s=2), grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE", (2, 2)),
    (
        embedding.EmbedderUnavailable("m", retry_after_s=7.5),
        grpc.StatusCode.UNAVAILABLE,
        "EMBEDDER_UNAVAILABLE",
        (7.5, 7.5),
    ),
    (embedding.EmbedderMisconfigured("m"), grpc.StatusCode.FAILED_PRECONDITION, "EMBEDDER_MISCONFIGURED", None),
    (MalformedRequest("m"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", None),
]

# Never raised themselves, or turned into InvalidArgument where the field is known, or raised in commands only.
UNMAPPED = {
    *(db.DatabaseError, embedding.EmbeddingError, embedding.TextNotEmbeddable),
    *(db.ReembeddingConflict, db.ReembeddingBehind),
}

DETAILS: tuple[type[Message], ...] = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
)


def details_of(error: BaseException) -> tuple[grpc.StatusCode, str, dict[str, Message]]:
    """Returns code, message and details, by their names, as a client reads them."""
    status = to_status(error)
    trailers = dict(status.trailing_metadata)
    sent = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert (sent.code, sent.message) == (status.code.value[0], status.details)
    found: dict[str, Message] = {}
    for packed in sent.details:
        for kind in DETAILS:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind()
                packed.Unpack(found[kind.DESCRIPTOR.name])
    assert len(found) == len(sent.details)
    return status.code, status.details, found


@pytest.mark.parametrize(("error", "code", "reason", "retry_s"), CASES, ids=lambda case: type(case).__name__)
def test_error_has_its_status(
    error: Exception, code: grpc.StatusCode, reason: str, retry_s: tuple[float, float] | None
) -> None:
    found_code, message, details = details_of(error)
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (found_code, message, info.reason, info.domain) == (code, str(error), reason, DOMAIN)
    assert ("RetryInfo" in details) == (retry_s is not None)
    if retry_s is not None:
        retry = details["RetryInfo"]
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry_s[0] <= retry.retry_delay.ToTimedelta().total_seconds() <= retry_s[1]


@pytest.mark.parametrize(("error", "code", "reason", "retry_s"), CASES, ids=lambda case: type(case).__name__)
def test_grpc_is_told_the_same_as_the_caller(
    error: Exception, code: grpc.StatusCode, reason: str, retry_s: tuple[float, float] | None
) -> None:
    trailers = dict(to_status(error).trailing_metadata)
    sent = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    told = [retry.retry_delay.ToMilliseconds() for detail in sent.details if detail.Unpack(retry)]
    forbidden = "-1" if code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_s is None else None
    assert trailers.get("grpc-retry-pushback-ms") == next((str(delay) for delay in told), forbidden), reason


def test_no_error_is_forgotten() -> None:
    declared = {
        kind
        for module in (db, embedding)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == module.__name__
    }
    assert {type(error) for error, *_ in CASES} - {MalformedRequest} == declared - UNMAPPED


def test_reasons_are_the_contract_s() -> None:
    assert {reason for _, _, reason, _ in CASES} <= {reason_name(value) for value in pb.ErrorReason.values()}
    assert reason_name(pb.ERROR_REASON_INTERNAL) == "INTERNAL"


def test_retries_of_the_refused_are_spread_out() -> None:
    delays = {to_failure(db.PoolExhausted("m")).retry_after_s for _ in range(20)}
    assert len(delays) > 10


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UndefinedColumn(f"{SQL} {URL}"),
        psycopg.OperationalError(URL),
        KeyError(URL),
        ValueError(SQL),
        db.DatabaseError(SQL),
        embedding.EmbeddingError(URL),
        embedding.TextNotEmbeddable(0, SQL),
        SystemExit(URL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_defects_tell_nothing_but_where_to_look(error: BaseException) -> None:
    with structlog.testing.capture_logs() as events:
        code, message, details = details_of(error)
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    error_id = info.metadata["error_id"]
    assert (code, info.reason, message) == (grpc.StatusCode.INTERNAL, "INTERNAL", f"internal error {error_id}")
    [event] = events
    assert (event["event"], event["error_id"], event["exc_info"]) == ("internal_error", error_id, error)
    assert len(error_id) == 16


def test_causes_are_not_told() -> None:
    error = caused(db.Conflict("concurrent transactions collided"), psycopg.errors.DeadlockDetected(f"{SQL} {URL}"))
    status = to_status(error)
    sent = repr(status).encode() + b"".join(bytes(value) for _, value in status.trailing_metadata)
    assert b"SELECT" not in sent
    assert b"hush" not in sent


def test_arguments_are_named_field_by_field() -> None:
    violations = [
        Violation("memories[3].embedding", "has 7 dimensions, expected 8", pb.ERROR_REASON_DIMENSION_MISMATCH),
        Violation("user_id", "is required"),
    ]
    error = InvalidArgument(violations, facts={"expected_dimensions": "8"})
    code, message, details = details_of(error)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "memories[3].embedding: has 7 dimensions, expected 8 (and 1 more)"
    info, bad_request = details["ErrorInfo"], details["BadRequest"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    assert (info.reason, dict(info.metadata)) == ("DIMENSION_MISMATCH", {"expected_dimensions": "8"})
    assert [(one.field, one.reason, one.description) for one in bad_request.field_violations] == [
        ("memories[3].embedding", "DIMENSION_MISMATCH", "has 7 dimensions, expected 8"),
        ("user_id", "INVALID_FIELD", "is required"),
    ]
    _, alone, _ = details_of(InvalidArgument(violations[1:]))
    assert alone == "user_id: is required"


def test_page_tokens_are_a_field() -> None:
    code, message, details = details_of(InvalidPageToken("is not a page token of this service"))
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "page_token: is not a page token of this service",
    )
    bad_request = details["BadRequest"]
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    [violation] = bad_request.field_violations
    assert (violation.field, violation.reason) == ("page_token", "PAGE_TOKEN_INVALID")


def test_trailers_are_added() -> None:
    status = to_status(db.Conflict("m"), trailers=(("x", "1"), ("y-bin", b"2")))
    assert [key for key, _ in status.trailing_metadata] == ["grpc-status-details-bin", "x", "y-bin"]


def test_delays_are_the_documented_ones() -> None:
    assert timedelta(seconds=errors.POOL_RETRY_S) == timedelta(milliseconds=250)
    assert timedelta(seconds=errors.DATABASE_RETRY_S) == timedelta(seconds=1)
