"""Calls that fail: what a caller is told, checked for what no caller may ever be told."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

TIMEOUT_S = 30.0

REASONS = {value.name for value in pb.ErrorReason.DESCRIPTOR.values} - {"ERROR_REASON_UNSPECIFIED"}

# What gives away how the service is made: statements, tables, connection strings, places in the file system and code.
_LEAK = re.compile(
    r"\b(SELECT|INSERT INTO|DELETE FROM|WHERE|FROM \w+|ON CONFLICT)\b|UPDATE \w+ SET|%\(\w+\)|\$\d"
    r"|\b(memory_entries|memory_access|request_ids|embedding_cache|embedding_space|pg_\w+)\b"
    r"|postgres(ql)?://|\b(host|hostaddr|dbname|password|user)=|\.s\.PGSQL|psycopg|(?i:sqlstate)"
    r"|Traceback|File \"|\bline \d+\b|\.py\b|\w+Error\b|(^|[\s'\"(])/[\w.-]+/[\w.-]",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a caller learns from a call that failed."""

    code: grpc.StatusCode
    reason: str
    """ErrorInfo.reason."""
    message: str
    violations: dict[str, str]
    """BadRequest's descriptions by field path, in the order told."""
    facts: dict[str, str]
    """ErrorInfo.metadata."""
    retry_after_s: float | None
    """RetryInfo.retry_delay."""


def failure(make_call: Callable[[], object]) -> Failure:
    """Returns how a call fails; fails the test when it succeeds, or tells the caller something it must not."""
    return failure_of(raised_by(make_call))


def raised_by(make_call: Callable[[], object]) -> grpc.RpcError:
    """Returns the error of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        make_call()
    return caught.value


def failure_of(error: grpc.RpcError) -> Failure:
    """Returns what the server says in a failed call's status and details."""
    call = cast("grpc.Call", error)
    trailers: dict[str, Any] = dict(call.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailers, f"an error without details: {error}"
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, bad_request, retry = _unpack(status)
    message = call.details() or ""
    found = Failure(
        code=call.code(),
        reason=info.reason,
        message=message,
        violations=_by_field(bad_request),
        facts=dict(info.metadata),
        retry_after_s=None if retry is None else retry.retry_delay.ToTimedelta().total_seconds(),
    )
    assert (status.code, status.message) == (found.code.value[0], message)
    assert info.domain == "memory_service"
    assert f"ERROR_REASON_{info.reason}" in REASONS
    _check_for_leaks(message, *found.violations, *found.violations.values(), *found.facts.values())
    return found


def _unpack(
    status: status_pb2.Status,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo | None]:
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    kinds = [next(kind for kind in (info, bad_request, retry) if detail.Unpack(kind)) for detail in status.details]
    assert kinds.count(info) == 1, f"exactly one ErrorInfo is promised: {status}"
    return info, bad_request, retry if retry in kinds else None


def _by_field(bad_request: error_details_pb2.BadRequest) -> dict[str, str]:
    """Returns what is wrong with each field; of one with several faults, all of them."""
    found: dict[str, list[str]] = {}
    for violation in bad_request.field_violations:
        found.setdefault(violation.field, []).append(violation.description)
    for path, descriptions in found.items():
        assert len(set(descriptions)) == len(descriptions), f"{path} is told the same twice: {descriptions}"
    return {path: "; ".join(descriptions) for path, descriptions in found.items()}


def _check_for_leaks(*texts: str) -> None:
    for text in texts:
        assert text
        assert not _LEAK.search(text), f"tells the caller too much: {text}"


def code_of(make_call: Callable[[], object]) -> grpc.StatusCode:
    """Returns the status code of a call that gRPC itself ends, in the client or before the service sees it."""
    error = raised_by(make_call)
    call = cast("grpc.Call", error)
    _check_for_leaks(call.details() or "no details")
    return call.code()


def send(stub: MemoryServiceStub, request: Any, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Calls the RPC whose request type `request` is."""
    rpc = type(request).__name__.removesuffix("Request")
    return getattr(stub, rpc)(request, timeout=timeout_s)
