"""Telling who calls by an API key."""

import hashlib
import time
from collections.abc import Callable
from datetime import datetime

from db.api_keys import ApiKey
from memory_service.access import api_key
from memory_service.access.api_key import WrittenKey
from memory_service.access.authenticator import unsuspected
from memory_service.access.errors import CredentialsInvalid
from memory_service.access.expiring_map import ExpiringMap
from memory_service.access.key_directory import KeyDirectory, KnownKey
from memory_service.access.principal import Principal

# A client that goes on with a wrong key costs one query in this time, and no more keys than this are remembered.
REFUSED_S = 5.0
MAX_REFUSED = 10_000


class KeyAuthenticator:
    """Checks API keys."""

    def __init__(self, directory: KeyDirectory, *, clock: Callable[[], datetime]) -> None:
        self._directory = directory
        self._clock = clock
        self._refused: ExpiringMap[bytes, str] = ExpiringMap(MAX_REFUSED)

    def principal_of(self, credential: str, *, is_suspect: Callable[[], bool] = unsuspected) -> Principal:
        """Returns who calls with an API key; `is_suspect` tells whether it comes from where many wrong ones do.

        Raises:
            CredentialsInvalid: When it is none, or not valid.
            DatabaseError: When that cannot be found out.
        """
        written = api_key.parse(credential)
        if written is None:
            raise CredentialsInvalid("malformed API key")
        now = self._clock()
        known = self._directory.known(written.id)
        # One that does not match may be the new secret of a key that has just been rotated.
        if known is None or not _matches(written, known.key, now):
            known = self._look_up(written, now, is_suspect)
        if known.key.revoked_at is not None:
            raise _refused(written, "revoked")
        if known.key.expires_at is not None and known.key.expires_at <= now:
            raise _refused(written, "expired")
        self._directory.used(known.key, now=now)
        return known.principal

    def _look_up(self, written: WrittenKey, now: datetime, is_suspect: Callable[[], bool]) -> KnownKey:
        fingerprint = hashlib.sha256(written.written().encode("ascii")).digest()
        refusal = self._refused.get(fingerprint, now=time.monotonic())
        if refusal is not None:
            raise _refused(written, refusal)
        known = self._directory.read(written.id, suspect=is_suspect())
        if known is None:
            api_key.matches(written, api_key.NO_SECRET)
            refusal = "unknown"
        elif not _matches(written, known.key, now):
            refusal = "wrong secret"
        else:
            return known
        self._refused.put(fingerprint, refusal, until=time.monotonic() + REFUSED_S)
        raise _refused(written, refusal)


def _matches(written: WrittenKey, key: ApiKey, now: datetime) -> bool:
    """Whether the secret is one of the key's; a replaced one counts until its time is over."""
    found = [secret for secret in key.secrets if api_key.matches(written, secret)]
    return any(secret.valid_until is None or secret.valid_until > now for secret in found)


def _refused(written: WrittenKey, refusal: str) -> CredentialsInvalid:
    return CredentialsInvalid(refusal, subject=f"key:{written.id}")
