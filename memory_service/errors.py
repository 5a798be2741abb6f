"""From exceptions to gRPC: the one place that decides which status, reason and details a caller sees.

What is not listed here is a defect of ours: the caller gets INTERNAL with an error id, the log the traceback.
"""

import random
import secrets
from collections import namedtuple
from dataclasses import dataclass, field, replace

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from db import errors as db
from memory_service.access import errors as access
from memory_service.embedding import errors as embedding
from memory_service.global_recall import GlobalSearchDisabled
from memory_service.importing import ChunkFailed
from memory_service.key_administration import ApiKeyNotFound
from memory_service.messages.page_token import InvalidPageToken
from memory_service.messages.violations import InvalidArgument
from memory_service.method_handlers import MalformedRequest
from memory_service.user_administration import DevelopmentOnly
from memory_service.v1 import memory_pb2 as pb

log = structlog.get_logger(__name__)

DOMAIN = "memory_service"
PUSHBACK = "grpc-retry-pushback-ms"

POOL_RETRY_S = 0.25
DATABASE_RETRY_S = 1.0
# A server that follows the database to another model takes about as long.
SPACE_RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A status with the details that become google.rpc messages."""

    code: grpc.StatusCode
    reason: pb.ErrorReason.ValueType
    message: str
    facts: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    field_violations: tuple[tuple[str, str, str], ...] = ()
    """Field path, reason and description of each."""


_Meaning = tuple[grpc.StatusCode, pb.ErrorReason.ValueType]

# Classes of db.errors, access.errors and embedding.errors whose message may be shown as it is.
_MEANINGS: dict[type[Exception], _Meaning] = {
    MalformedRequest: (grpc.StatusCode.INVALID_ARGUMENT, pb.ERROR_REASON_INVALID_FIELD),
    db.MemoryNotFound: (grpc.StatusCode.NOT_FOUND, pb.ERROR_REASON_MEMORY_NOT_FOUND),
    db.MemoryExists: (grpc.StatusCode.ALREADY_EXISTS, pb.ERROR_REASON_MEMORY_EXISTS),
    db.MemoryDeleted: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_MEMORY_DELETED),
    db.MemoryNotDeleted: (grpc.StatusCode.ALREADY_EXISTS, pb.ERROR_REASON_MEMORY_NOT_DELETED),
    db.EmbeddingPending: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_EMBEDDING_PENDING),
    db.EtagMismatch: (grpc.StatusCode.ABORTED, pb.ERROR_REASON_ETAG_MISMATCH),
    db.RequestIdReused: (grpc.StatusCode.INVALID_ARGUMENT, pb.ERROR_REASON_REQUEST_ID_REUSED),
    db.ReplyTooLarge: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_REPLY_TOO_LARGE),
    db.InvalidValue: (grpc.StatusCode.INVALID_ARGUMENT, pb.ERROR_REASON_INVALID_FIELD),
    db.Conflict: (grpc.StatusCode.ABORTED, pb.ERROR_REASON_CONFLICT),
    db.StatementTimeout: (grpc.StatusCode.DEADLINE_EXCEEDED, pb.ERROR_REASON_DEADLINE_EXCEEDED),
    db.CallCancelled: (grpc.StatusCode.CANCELLED, pb.ERROR_REASON_CANCELLED),
    db.PoolExhausted: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_OVERLOADED),
    db.StorageFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_STORAGE_FULL),
    db.DatabaseUnavailable: (grpc.StatusCode.UNAVAILABLE, pb.ERROR_REASON_DATABASE_UNAVAILABLE),
    db.EmbeddingSpaceChanged: (grpc.StatusCode.UNAVAILABLE, pb.ERROR_REASON_EMBEDDING_SPACE_CHANGED),
    db.SchemaMismatch: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_SCHEMA_MISMATCH),
    db.UnsupportedDatabase: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_SCHEMA_MISMATCH),
    DevelopmentOnly: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_DEVELOPMENT_ONLY),
    ApiKeyNotFound: (grpc.StatusCode.NOT_FOUND, pb.ERROR_REASON_API_KEY_NOT_FOUND),
    GlobalSearchDisabled: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_GLOBAL_SEARCH_DISABLED),
    access.CredentialsMissing: (grpc.StatusCode.UNAUTHENTICATED, pb.ERROR_REASON_CREDENTIALS_MISSING),
    access.CredentialsInvalid: (grpc.StatusCode.UNAUTHENTICATED, pb.ERROR_REASON_CREDENTIALS_INVALID),
    access.RoleInsufficient: (grpc.StatusCode.PERMISSION_DENIED, pb.ERROR_REASON_ROLE_INSUFFICIENT),
    access.UserNotAllowed: (grpc.StatusCode.PERMISSION_DENIED, pb.ERROR_REASON_USER_NOT_ALLOWED),
    access.TokenKeysUnavailable: (grpc.StatusCode.UNAVAILABLE, pb.ERROR_REASON_TOKEN_KEYS_UNAVAILABLE),
    access.Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_OVERLOADED),
    access.LimitExceeded: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_RATE_LIMITED),
    access.QuotaExceeded: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.ERROR_REASON_QUOTA_EXCEEDED),
    embedding.EmbedderUnavailable: (grpc.StatusCode.UNAVAILABLE, pb.ERROR_REASON_EMBEDDER_UNAVAILABLE),
    embedding.EmbedderMisconfigured: (grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_REASON_EMBEDDER_MISCONFIGURED),
}


def to_failure(error: BaseException) -> Failure:
    """Returns what a caller is told about `error`."""
    if isinstance(error, InvalidArgument):
        return _invalid_argument(error)
    if isinstance(error, ChunkFailed) and error.__cause__ is not None:
        return _of_chunk(error.chunk, to_failure(error.__cause__))
    if isinstance(error, InvalidPageToken):
        return _bad_field("page_token", str(error), pb.ERROR_REASON_PAGE_TOKEN_INVALID)
    for kind, (code, reason) in _MEANINGS.items():
        if isinstance(error, kind):
            return Failure(
                code=code,
                reason=reason,
                message=str(error),
                facts=_facts(error),
                retry_after_s=_retry_after_s(error),
                field_violations=_named_field(error, reason),
            )
    error_id = secrets.token_hex(8)
    log.error("internal_error", error_id=error_id, exc_info=error)
    return Failure(
        code=grpc.StatusCode.INTERNAL,
        reason=pb.ERROR_REASON_INTERNAL,
        message=f"internal error {error_id}",
        facts={"error_id": error_id},
    )


def _invalid_argument(error: InvalidArgument) -> Failure:
    first = error.violations[0]
    more = f" (and {len(error.violations) - 1} more)" if len(error.violations) > 1 else ""
    return Failure(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason=first.reason,
        message=f"{first.field}: {first.description}{more}",
        facts=error.facts,
        field_violations=tuple(
            (violation.field, reason_name(violation.reason), violation.description) for violation in error.violations
        ),
    )


def _of_chunk(chunk: int, failure: Failure) -> Failure:
    """Adds which chunk of a stream it was; field paths are relative to the chunk."""
    return replace(failure, message=f"chunk {chunk}: {failure.message}", facts={**failure.facts, "chunk": str(chunk)})


def _bad_field(path: str, description: str, reason: pb.ErrorReason.ValueType) -> Failure:
    return Failure(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason=reason,
        message=f"{path}: {description}",
        field_violations=((path, reason_name(reason), description),),
    )


def _named_field(error: BaseException, reason: pb.ErrorReason.ValueType) -> tuple[tuple[str, str, str], ...]:
    """Returns the field at fault, where only the database could tell."""
    if not isinstance(error, db.MemoryExists):
        return ()
    path = "memory.id" if error.index is None else f"memories[{error.index}].id"
    return ((path, reason_name(reason), str(error)),)


def _facts(error: BaseException) -> dict[str, str]:
    match error:
        case access.RoleInsufficient():
            return {"needed_role": error.needed}
        case access.LimitExceeded():
            return {"limit": error.limit}
        case access.QuotaExceeded():
            return {"quota": error.quota}
        case _:
            return {}


def _retry_after_s(error: BaseException) -> float | None:
    match error:
        case db.PoolExhausted():
            # Spread out, so that those refused together do not come back together.
            return POOL_RETRY_S * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        case db.DatabaseUnavailable():
            return DATABASE_RETRY_S
        case db.EmbeddingSpaceChanged():
            return SPACE_RETRY_S
        case access.LimitExceeded():
            # Never sooner than it makes sense.
            return error.retry_after_s * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
        case embedding.EmbedderUnavailable() | access.TokenKeysUnavailable():
            return error.retry_after_s
        case _:
            return None


def reason_name(reason: pb.ErrorReason.ValueType) -> str:
    """Returns the reason as ErrorInfo carries it: the enum's name without its prefix."""
    return pb.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


class Status(namedtuple("Status", ("code", "details", "trailing_metadata")), grpc.Status):  # noqa: PYI024 - grpc.Status wants attributes
    """A status for `context.abort_with_status`."""


def to_status(error: BaseException, *, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> Status:
    """Returns the gRPC status for `error`, with google.rpc details, what gRPC's own retries need, and `trailers`."""
    failure = to_failure(error)
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason_name(failure.reason), domain=DOMAIN, metadata=failure.facts)
    )
    if failure.field_violations:
        bad_request = error_details_pb2.BadRequest()
        for path, reason, description in failure.field_violations:
            bad_request.field_violations.add(field=path, reason=reason, description=description)
        status.details.add().Pack(bad_request)
    if failure.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(failure.retry_after_s * 1_000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    details_trailer = ("grpc-status-details-bin", status.SerializeToString())
    return Status(failure.code, failure.message, (details_trailer, *_pushback(failure), *trailers))


def _pushback(failure: Failure) -> tuple[tuple[str, str], ...]:
    """Returns RetryInfo for clients that let gRPC retry, which reads nothing but this trailer (gRFC A6).

    -1 forbids to: one RESOURCE_EXHAUSTED passes with time, another would only be caused again.
    """
    if failure.retry_after_s is not None:
        return ((PUSHBACK, str(round(failure.retry_after_s * 1_000))),)
    return ((PUSHBACK, "-1"),) if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED else ()
