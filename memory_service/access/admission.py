"""Letting calls in: who calls, what they may do, how much, and that it is written down. All on a worker thread."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
import structlog

from memory_service.access import authorization, late_charges
from memory_service.access.errors import AccessError, CredentialsInvalid
from memory_service.access.principal import ANONYMOUS, DEVELOPER, NOBODY, Principal

# How long a stream goes on with the credentials it brought before they are looked at again.
IDENTIFY_EVERY_S = 3.0


class Authenticator(Protocol):
    """Tells who calls."""

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Returns the caller; raises CredentialsMissing or CredentialsInvalid."""
        ...


class Limiter(Protocol):
    """Says when it is too much."""

    def spend(self, principal: Principal, request: Any) -> None:
        """Counts one request message, of which a stream has many, or raises LimitExceeded."""
        ...

    def spend_denied(self, principal: Principal) -> None:
        """Counts a request that the caller may not make, or raises LimitExceeded."""
        ...

    def spend_tokens(self, principal: Principal, request: Any, tokens: int) -> None:
        """Counts tokens that are embedded for a request beyond those it shows, or raises LimitExceeded."""
        ...


class AuditTrail(Protocol):
    """Writes down who did what."""

    def admitted(self, call: "AdmittedCall") -> None:
        """Takes note of a call whose request is about to be acted on.

        Raises:
            DatabaseError: When this has to be written down before, and cannot be.
        """
        ...

    def streamed(self, call: "AdmittedCall", reply: Any) -> None:
        """Takes note of one of the replies of a stream; must not block."""
        ...

    def ended(self, call: "AdmittedCall", code: grpc.StatusCode, reason: str | None) -> None:
        """Takes note of a call that has ended, with ErrorInfo.reason where it failed; must not block."""
        ...


class AdmittedCall:
    """One call, from being let in to its end."""

    __slots__ = (
        *("_admission", "_identified_at", "context", "last_request", "method", "principal"),
        *("is_stream", "reply", "request_id", "user_id"),
    )

    def __init__(self, admission: "Admission", method: str, context: grpc.ServicerContext) -> None:
        self._admission = admission
        self._identified_at = 0.0
        self.method = method
        """The full name, /memory_service.v1.MemoryService/InsertVector and so on."""
        self.context = context
        self.principal = NOBODY
        """Who calls, once `begin` has found out."""
        self.last_request: Any = None
        """The request, of a stream the last one read; None before one was read."""
        self.user_id = ""
        """Whom the request names, of a stream the first one: a stream is about one user."""
        self.request_id = ""
        """Names the call in the log."""
        self.reply: Any = None
        """The reply, of a call that has one."""
        self.is_stream = False
        """Whether replies were streamed."""

    def begin(self) -> None:
        """Authenticates the caller.

        Raises:
            AccessError: When the call may not go on.
            DatabaseError: When what is stored about credentials cannot be read.
        """
        self._identified_at = time.monotonic()
        self.principal = self._admission.identify(self.context)
        try:
            authorization.require_role(self.principal, self.method)
        except AccessError:
            self._count_denied()
            raise

    def _count_denied(self) -> None:
        if self._admission.limiter is not None:
            self._admission.limiter.spend_denied(self.principal)

    def check(self, request: Any) -> Any:
        """Returns a request message that may be acted on; raises an AccessError for others."""
        if self.last_request is None:
            self.user_id = getattr(request, "user_id", "")
        self.last_request = request
        # A stream may go on for hours after its key was revoked or its token has expired.
        if time.monotonic() - self._identified_at > IDENTIFY_EVERY_S:
            self.begin()
        try:
            authorization.require_users(self.principal, request)
        except AccessError:
            self._count_denied()
            raise
        if self._admission.limiter is not None:
            self._admission.limiter.spend(self.principal, request)
            late_charges.expect(partial(self._admission.limiter.spend_tokens, self.principal, request))
        if self._admission.audit is not None:
            self._admission.audit.admitted(self)
        return request

    def replied(self, reply: Any) -> Any:
        """Returns the reply, having taken note of it."""
        self.reply = reply
        return reply

    def streamed(self, reply: Any) -> Any:
        """Returns one of the replies of a stream, having taken note of it."""
        self.is_stream = True
        if self._admission.audit is not None:
            self._admission.audit.streamed(self, reply)
        return reply

    def end(self, code: grpc.StatusCode, reason: str | None = None) -> None:
        """Takes note of the end of the call, also of one that was not let in."""
        if self._admission.audit is not None:
            self._admission.audit.ended(self, code, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What calls have to pass; None lets all pass."""

    authenticator: Authenticator | None = None
    limiter: Limiter | None = None
    audit: AuditTrail | None = None
    anonymous: Principal = ANONYMOUS
    """Who calls where there is no authenticator."""

    def identify(self, context: grpc.ServicerContext) -> Principal:
        """Returns the caller and names it in the log; raises what the authenticator does."""
        if self.authenticator is None:
            return self.anonymous
        try:
            principal = self.authenticator(context)
        except CredentialsInvalid as error:
            # In the line that says how the call ended. Never what was sent: it may be a secret with a typing error.
            structlog.contextvars.bind_contextvars(subject=error.subject, refusal=error.refusal)
            raise
        structlog.contextvars.bind_contextvars(subject=principal.subject)
        return principal

    def of(self, method: str, context: grpc.ServicerContext) -> AdmittedCall:
        """Returns a call of a method, not yet begun."""
        return AdmittedCall(self, method, context)


# For listeners whose methods no rule knows.
OPEN = Admission(anonymous=DEVELOPER)
