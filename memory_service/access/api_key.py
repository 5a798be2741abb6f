"""An API key as it is written: msk_<id>_<secret>, and how its secret is recognized from a digest.

The id finds the key and names it in logs; the secret is 256 random bits. Only its HMAC-SHA-256 under a salt is stored.
Passwords need a slow hash because they can be guessed; nobody guesses one of 2^256, however fast the hash. A slow one
would cost its tens of milliseconds here, for everybody who sends a wrong key.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import timedelta

from db.api_keys import SecretDigest

ID_BYTES = 8
SECRET_BYTES = 32
SALT_BYTES = 16
# How long a secret stays valid beside the one that follows it, unless told otherwise.
OVERLAP = timedelta(hours=24)

_WRITTEN = re.compile(r"msk_([0-9a-f]{16})_([0-9a-f]{64})")

# What an unknown id is compared with, so that it takes as long as a known one.
NO_SECRET = SecretDigest(salt=bytes(SALT_BYTES), digest=bytes(hashlib.sha256().digest_size))


@dataclass(frozen=True, slots=True)
class WrittenKey:
    """A key as its holder has it."""

    id: str
    secret: str = field(repr=False)

    def written(self) -> str:
        """Returns the key as callers send it."""
        return f"msk_{self.id}_{self.secret}"


def new_key() -> WrittenKey:
    """Returns a new key."""
    return WrittenKey(secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES))


def with_new_secret(key_id: str) -> WrittenKey:
    """Returns the key of an id with a new secret."""
    return WrittenKey(key_id, secrets.token_hex(SECRET_BYTES))


def parse(written: str) -> WrittenKey | None:
    """Returns the key, None for what is not written like one."""
    match = _WRITTEN.fullmatch(written)
    return WrittenKey(match[1], match[2]) if match else None


def looks_like_one(credential: str) -> bool:
    """Whether a credential is meant as an API key, and not as a token."""
    return credential.startswith("msk_")


def digest_of(key: WrittenKey) -> SecretDigest:
    """Returns what to store of a key's secret, under a new salt."""
    salt = secrets.token_bytes(SALT_BYTES)
    return SecretDigest(salt=salt, digest=_digest(salt, key))


def matches(key: WrittenKey, stored: SecretDigest) -> bool:
    """Whether the key's secret is the one stored; takes the same time for every wrong one."""
    return hmac.compare_digest(_digest(stored.salt, key), stored.digest)


def _digest(salt: bytes, key: WrittenKey) -> bytes:
    return hmac.digest(salt, key.secret.encode("ascii"), "sha256")
