"""What a call brings to prove who makes it: one API key or token, in one of two places of its metadata."""

from collections.abc import Iterable

from memory_service.access.errors import CredentialsInvalid, CredentialsMissing

AUTHORIZATION = "authorization"
API_KEY = "api-key"
SCHEME = "bearer"


def credential_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Returns the API key or token, whatever it is.

    Raises:
        CredentialsMissing: When there is none.
        CredentialsInvalid: When there are several, so that nobody can tell which one counts, or it is something else.
    """
    found = [(key, value) for key, value in metadata if key in {AUTHORIZATION, API_KEY}]
    if not found:
        raise CredentialsMissing
    if len(found) > 1:
        raise CredentialsInvalid("several credentials")
    key, value = found[0]
    if not isinstance(value, str) or not value.isascii():
        raise CredentialsInvalid("not ASCII")
    if key == API_KEY:
        return value.strip()
    scheme, _, credential = value.strip().partition(" ")
    if scheme.lower() != SCHEME:
        raise CredentialsInvalid("not a bearer token")
    return credential.strip()
