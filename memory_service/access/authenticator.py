"""Telling who calls, by whichever credentials this server accepts."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import grpc

from memory_service.access import api_key
from memory_service.access.credentials import credential_of
from memory_service.access.errors import CredentialsInvalid, CredentialsMissing
from memory_service.access.failed_attempts import FailedAttempts
from memory_service.access.principal import EVERYONE, Principal, Role
from memory_service.text_table import printable

PrincipalOf = Callable[[str], Principal]
"""Tells whose credential it is; raises CredentialsInvalid, or what keeps it from finding out."""

# What a certificate says of its holder, best first: newer ones have no common name.
CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name", "x509_subject")


class KeyCheck(Protocol):
    """Tells whose API key it is."""

    def __call__(self, credential: str, *, is_suspect: Callable[[], bool]) -> Principal:
        """Returns the caller; asks whether it is suspect where telling takes a query."""
        ...


def unsuspected() -> bool:
    """Suspects nobody."""
    return False


class CredentialAuthenticator:
    """Checks the API key or the token that a call brings; None: such are not accepted.

    Calls without valid ones are counted in `failures`, where it is given.
    """

    def __init__(
        self, *, keys: KeyCheck | None, tokens: PrincipalOf | None, failures: FailedAttempts | None = None
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._failures = failures

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Returns the caller.

        Raises:
            CredentialsMissing: When the call brings none.
            CredentialsInvalid: When they are not valid here.
            LimitExceeded: The same of either, from an address that it happens to too often.
            TokenKeysUnavailable, DatabaseError: When that cannot be found out.
        """
        try:
            return self._principal_of(context)
        except (CredentialsMissing, CredentialsInvalid):
            if self._failures is not None:
                self._failures.count(context.peer())
            raise

    def _principal_of(self, context: grpc.ServicerContext) -> Principal:
        credential = credential_of(context.invocation_metadata() or ())
        if api_key.looks_like_one(credential):
            if self._keys is None:
                raise CredentialsInvalid("API keys are not accepted")
            return self._keys(credential, is_suspect=partial(self._is_suspect, context))
        if self._tokens is None:
            raise CredentialsInvalid("tokens are not accepted")
        return self._tokens(credential)

    def _is_suspect(self, context: grpc.ServicerContext) -> bool:
        return self._failures is not None and self._failures.used_up(context.peer())


class CertificateAuthenticator:
    """Names callers after their certificates, where nothing else is asked for: whoever has one may write for all."""

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Returns the caller; the TLS handshake has checked the certificate."""
        # types-grpcio says bytes; it is a list of them.
        said: Any = context.auth_context()
        name: bytes = next((name for kind in CERTIFICATE_NAMES for name in said.get(kind, ()) if name), b"")
        subject = f"certificate:{printable(name.decode('utf-8', 'replace'))}"
        return Principal(subject=subject, role=Role.WRITER, scope=EVERYONE)
