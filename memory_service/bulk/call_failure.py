"""What a failed call means for a transfer: whether another try may help, and what to tell its user."""

from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS = "grpc-status-details-bin"

# Another try may help, whoever says so: the service, or gRPC because the connection broke or the server was replaced.
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
# What gRPC calls a stream that was torn off; from the service itself they mean something else.
_TORN_OFF = {grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
_LASTING_REASONS = {"STORAGE_FULL", "REPLY_TOO_LARGE", "QUOTA_EXCEEDED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailure:
    """A call that failed, as its status and details say."""

    code: grpc.StatusCode
    message: str
    reason: str
    """ErrorInfo.reason; empty where gRPC failed and not the service."""
    facts: dict[str, str]
    violations: list[tuple[str, str]]
    """Field paths with what is wrong there."""
    retry_after_s: float

    @property
    def may_pass(self) -> bool:
        """Whether another try may succeed."""
        if not self.reason and self.code in _TORN_OFF:
            return True
        return self.code in _PASSING and self.reason not in _LASTING_REASONS

    def __str__(self) -> str:
        return f"{self.message or 'the call failed'} ({self.reason or self.code.name})"


def failure_of(error: grpc.RpcError) -> CallFailure:
    """Returns what a failed call says."""
    call = cast("grpc.Call", error)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                next((kind for kind in (info, bad_request, retry) if detail.Unpack(kind)), None)
    return CallFailure(
        code=call.code(),
        message=call.details() or "",
        reason=info.reason,
        facts=dict(info.metadata),
        violations=[(violation.field, violation.description) for violation in bad_request.field_violations],
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds(),
    )
