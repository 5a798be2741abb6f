"""Telling who calls by a token (JWT, RFC 7519) of an OpenID Connect issuer."""

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jwt

from memory_service.access.errors import CredentialsInvalid
from memory_service.access.expiring_map import ExpiringMap
from memory_service.access.principal import Principal
from memory_service.access.token_claims import ClaimMapping
from memory_service.access.token_keys import KeySet, TokenKeys

# Checking a signature takes 30 to 200 µs: a token that was checked is recognized until it expires, and until its
# issuer's keys are fetched the next time.
MAX_VERIFIED = 10_000
MAX_REMEMBERED_S = 86_400.0
REQUIRED_CLAIMS = ["exp", "iss", "aud", "sub"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token has to be."""

    issuer: str
    audience: str
    algorithms: Collection[str]
    leeway_s: float


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    keys: KeySet


class TokenAuthenticator:
    """Checks tokens."""

    def __init__(self, keys: TokenKeys, rules: TokenRules, claims: ClaimMapping) -> None:
        self._keys = keys
        self._rules = rules
        self._claims = claims
        self._verified: ExpiringMap[bytes, _Verified] = ExpiringMap(MAX_VERIFIED)

    def principal_of(self, credential: str) -> Principal:
        """Returns who calls with a token.

        Raises:
            CredentialsInvalid: When it is not valid.
            TokenKeysUnavailable: When that cannot be found out.
        """
        fingerprint = hashlib.sha256(credential.encode("ascii")).digest()
        verified = self._verified.get(fingerprint, now=time.time())
        if verified is not None and verified.keys is self._keys.trusted():
            return verified.principal
        claims, keys = self._verify(credential)
        principal = self._claims.principal_of(claims)
        # A number of any length, which no float may hold: nothing is remembered for longer than this.
        until = min(int(claims["exp"]), time.time() + MAX_REMEMBERED_S) + self._rules.leeway_s
        self._verified.put(fingerprint, _Verified(principal, keys), until=until)
        return principal

    def _verify(self, token: str) -> tuple[dict[str, Any], KeySet]:
        rules = self._rules
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if not isinstance(algorithm, str) or algorithm not in rules.algorithms:
                raise CredentialsInvalid("signed in a way that is not accepted")
            key, keys = self._keys.find(key_id, algorithm)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": REQUIRED_CLAIMS},
            )
        # Beside its own errors the library lets pass what Python says to claims such as {"exp": []} and {"nbf": 1e999}.
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CredentialsInvalid(f"token refused: {type(error).__name__}") from None
        return claims, keys
