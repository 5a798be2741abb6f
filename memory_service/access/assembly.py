"""What calls have to pass, put together as configured."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING

from db.pool import Database
from memory_service.access.admission import Authenticator
from memory_service.access.authenticator import (
    CertificateAuthenticator,
    CredentialAuthenticator,
    KeyCheck,
    PrincipalOf,
)
from memory_service.access.failed_attempts import create_failed_attempts
from memory_service.access.key_authenticator import KeyAuthenticator
from memory_service.access.key_directory import KeyDirectory
from memory_service.access.principal import ANONYMOUS, DEVELOPER, Principal
from memory_service.config import ConfigurationError, Settings
from memory_service.settings.identity import split_list

if TYPE_CHECKING:  # an extra
    from memory_service.access.token_keys import TokenKeys


def anonymous(settings: Settings) -> Principal:
    """Returns who calls a server that asks for no credentials."""
    return DEVELOPER if settings.environment == "development" else ANONYMOUS


def open_authenticator(
    settings: Settings, database: Database, *, clock: Callable[[], datetime], closing: ExitStack
) -> Authenticator | None:
    """Returns what tells who calls, None where nobody is asked; `closing` ends what it does in the background.

    Raises:
        ConfigurationError: When tokens are to be checked, and the library for it is missing.
    """
    if settings.auth == "off":
        return CertificateAuthenticator() if settings.tls_client_ca is not None else None
    return CredentialAuthenticator(
        keys=_open_keys(database, clock, closing) if settings.accepts_keys else None,
        tokens=_open_tokens(settings, closing) if settings.accepts_tokens else None,
        failures=create_failed_attempts(settings),
    )


def _open_keys(database: Database, clock: Callable[[], datetime], closing: ExitStack) -> KeyCheck:
    directory = KeyDirectory(database)
    directory.start()
    closing.callback(directory.close)
    return KeyAuthenticator(directory, clock=clock).principal_of


def _open_tokens(settings: Settings, closing: ExitStack) -> PrincipalOf:
    _require_token_library()
    from memory_service.access import token_authenticator, token_claims  # noqa: PLC0415 - need an extra

    keys = _token_keys(settings)
    keys.start()
    closing.callback(keys.close)
    rules = token_authenticator.TokenRules(
        issuer=settings.jwt_issuer or "",
        audience=settings.jwt_audience or "",
        algorithms=split_list(settings.jwt_algorithms),
        leeway_s=settings.jwt_leeway_s,
    )
    return token_authenticator.TokenAuthenticator(keys, rules, token_claims.claim_mapping(settings)).principal_of


def count_token_keys(settings: Settings) -> int:
    """Fetches the keys that tokens are checked with, and returns how many can be used.

    Raises:
        ConfigurationError: When they cannot be fetched, with the reason.
    """
    _require_token_library()
    from memory_service.access.jwks_source import FetchFailed  # noqa: PLC0415 - need an extra

    try:
        return len(_token_keys(settings).fetched().keys)
    except FetchFailed as error:
        raise ConfigurationError(str(error)) from None


def _token_keys(settings: Settings) -> "TokenKeys":
    from memory_service.access.jwks_source import JwksSource  # noqa: PLC0415 - need an extra
    from memory_service.access.token_keys import TokenKeys  # noqa: PLC0415 - likewise

    source = JwksSource(issuer=settings.jwt_issuer or "", jwks_url=settings.jwt_jwks_url)
    return TokenKeys(source.fetch, algorithms=split_list(settings.jwt_algorithms), max_age_s=settings.jwt_max_key_age_s)


def _require_token_library() -> None:
    if find_spec("jwt") is None:
        raise ConfigurationError("tokens need the extra `jwt`: pip install 'memory-service[jwt]'")
