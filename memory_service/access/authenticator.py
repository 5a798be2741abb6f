"""Telling who calls, by whichever credentials this server accepts."""

from collections.abc import Callable
from typing import Any

import grpc

from memory_service.access import api_key
from memory_service.access.credentials import credential_of
from memory_service.access.errors import CredentialsInvalid
from memory_service.access.principal import EVERYONE, Principal, Role
from memory_service.text_table import printable

PrincipalOf = Callable[[str], Principal]
"""Tells whose credential it is; raises CredentialsInvalid, or what keeps it from finding out."""


class CredentialAuthenticator:
    """Checks the API key or the token that a call brings; None: such are not accepted."""

    def __init__(self, *, keys: PrincipalOf | None, tokens: PrincipalOf | None) -> None:
        self._keys = keys
        self._tokens = tokens

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Returns the caller.

        Raises:
            CredentialsMissing: When the call brings none.
            CredentialsInvalid: When they are not valid here.
            TokenKeysUnavailable, DatabaseError: When that cannot be found out.
        """
        credential = credential_of(context.invocation_metadata() or ())
        if api_key.looks_like_one(credential):
            if self._keys is None:
                raise CredentialsInvalid("API keys are not accepted")
            return self._keys(credential)
        if self._tokens is None:
            raise CredentialsInvalid("tokens are not accepted")
        return self._tokens(credential)


class CertificateAuthenticator:
    """Names callers after their certificates, where nothing else is asked for: whoever has one may write for all."""

    def __call__(self, context: grpc.ServicerContext) -> Principal:
        """Returns the caller; the TLS handshake has checked the certificate."""
        # types-grpcio says bytes; it is a list of them.
        names: Any = context.auth_context().get("x509_common_name") or [b""]
        name = names[0].decode("utf-8", "replace")
        return Principal(subject=f"certificate:{printable(name)}", role=Role.WRITER, scope=EVERYONE)
