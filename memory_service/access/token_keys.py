"""The keys that tokens are checked with: fetched from their issuer, kept, and fetched again as they change."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from db.periodic import PeriodicThread
from memory_service.access.errors import CredentialsInvalid, TokenKeysUnavailable
from memory_service.access.jwks_source import FetchFailed

log = structlog.get_logger(__name__)

# Keys are fetched this often in the background, so that one that was withdrawn is not trusted for much longer.
REFRESH_S = 300.0
# Between fetches, whatever tokens name: unknown key ids must not become as many requests to the issuer.
MIN_INTERVAL_S = 10.0
# Calls that wait for a fetch at the same time, and for how long; the others are told to come back. A process may have
# no more than four threads for calls.
MAX_WAITING = 2
MAX_WAIT_S = 2.0
MIN_RSA_BITS = 2_048

PUBLIC_KEYS = (RSAPublicKey, EllipticCurvePublicKey, Ed25519PublicKey, Ed448PublicKey)
EC_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one fetch."""

    keys: dict[tuple[str | None, str], jwt.PyJWK]
    """By id and algorithm."""
    fetched_at: float

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Returns the key a token names; where it names none, the only one there is for its algorithm."""
        if key_id is not None:
            return self.keys.get((key_id, algorithm))
        candidates = [key for (_, of), key in self.keys.items() if of == algorithm]
        return candidates[0] if len(candidates) == 1 else None


class TokenKeys:
    """Finds the key that a token was signed with."""

    def __init__(self, fetch: Callable[[], list[Any]], *, algorithms: Iterable[str], max_age_s: float) -> None:
        """Prepares to fetch keys.

        Args:
            fetch: Returns the issuer's keys, or raises FetchFailed.
            algorithms: Those that tokens may be signed with.
            max_age_s: How long keys are trusted that cannot be fetched again.
        """
        self._fetch = fetch
        self._algorithms = frozenset(algorithms)
        self._max_age_s = max_age_s
        self._current: KeySet | None = None
        self._failing = False
        self._attempted_at = float("-inf")
        self._fetching = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)
        # Where calls fetch: an issuer that takes its time must not take a thread from them.
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="token-keys-of-calls")
        self._thread = PeriodicThread("token-keys", self.refresh, interval_s=MIN_INTERVAL_S)

    def start(self) -> None:
        """Begins to keep the keys current."""
        self._thread.start()
        self._thread.wake()

    def close(self) -> None:
        """Ends that."""
        self._thread.close()
        self._fetcher.shutdown(wait=False, cancel_futures=True)

    def trusted(self) -> KeySet | None:
        """Returns the keys there are, None where they are missing or too old."""
        current = self._current
        if current is None or time.monotonic() - current.fetched_at > self._max_age_s:
            return None
        return current

    def find(self, key_id: str | None, algorithm: str) -> tuple[jwt.PyJWK, KeySet]:
        """Returns the key of this id for this algorithm, and the set it is of.

        Raises:
            CredentialsInvalid: When the issuer has no such key.
            TokenKeysUnavailable: When it cannot be asked.
        """
        trusted = self.trusted()
        key = trusted.find(key_id, algorithm) if trusted is not None else None
        if trusted is None or key is None:
            trusted = self._renewed(trusted)
            key = trusted.find(key_id, algorithm)
        if key is None:
            raise CredentialsInvalid("unknown signing key")
        return key, trusted

    def fetched(self) -> KeySet:
        """Returns the keys as the issuer has them now; raises FetchFailed."""
        return KeySet(self._usable(self._fetch()), fetched_at=time.monotonic())

    def refresh(self) -> None:
        """Fetches the keys if it is time."""
        with self._fetching:
            current = self._current
            is_old = current is None or time.monotonic() - current.fetched_at >= REFRESH_S
            if is_old and self._may_ask():
                self._attempt()

    def _renewed(self, seen: KeySet | None) -> KeySet:
        """Returns newer keys than those seen where they may be fetched, else what there is."""
        if not self._waiting.acquire(blocking=False):
            raise TokenKeysUnavailable(retry_after_s=1.0)
        fetch = self._fetcher.submit(self._attempt_after, seen)
        try:
            fetch.result(MAX_WAIT_S)
        except TimeoutError:
            fetch.cancel()
            raise TokenKeysUnavailable(retry_after_s=1.0) from None
        finally:
            self._waiting.release()
        trusted = self.trusted()
        # The issuer may have changed its keys and be out of reach: an unknown one is no proof of a bad token then.
        if trusted is None or (trusted is seen and self._failing):
            raise TokenKeysUnavailable(retry_after_s=MIN_INTERVAL_S)
        return trusted

    def _attempt_after(self, seen: KeySet | None) -> None:
        with self._fetching:
            # Another call may have fetched them while this one waited.
            if self.trusted() is seen and self._may_ask():
                self._attempt()

    def _may_ask(self) -> bool:
        return time.monotonic() - self._attempted_at >= MIN_INTERVAL_S

    def _attempt(self) -> None:
        self._attempted_at = time.monotonic()
        try:
            fetched = self.fetched()
        except FetchFailed as error:
            self._failing = True
            log.error("token_keys_not_fetched", error=str(error))  # noqa: TRY400 - no defect
            return
        if self._current is None or self._failing or fetched.keys.keys() != self._current.keys.keys():
            log.info("token_keys_fetched", keys=len(fetched.keys))
        self._failing = False
        self._current = fetched

    def _usable(self, published: list[Any]) -> dict[tuple[str | None, str], jwt.PyJWK]:
        keys = {}
        for described in published:
            if not isinstance(described, dict) or described.get("use", "sig") != "sig":
                continue
            key_id = described.get("kid")
            if key_id is not None and not isinstance(key_id, str):
                continue
            for algorithm in _algorithms_of(described) & self._algorithms:
                key = _key(described, algorithm)
                if key is not None:
                    keys[key_id, algorithm] = key
        if not keys:
            raise FetchFailed("none of the issuer's keys can be used")
        return keys


def _algorithms_of(described: dict[str, Any]) -> frozenset[str]:
    """Returns what a key may be used for: never more than its kind allows, whatever a token says."""
    match described.get("kty"):
        case "RSA":
            possible = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
        case "EC":
            possible = {EC_ALGORITHMS.get(str(described.get("crv")), "")}
        case "OKP":
            possible = {"EdDSA"}
        case _:
            possible = set()
    meant = described.get("alg")
    return frozenset(possible if meant is None else possible & {meant} if isinstance(meant, str) else ())


def _key(described: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    try:
        key = jwt.PyJWK(described, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):  # published by others, in whatever shape
        log.warning("token_key_not_usable", algorithm=algorithm)
        return None
    if not isinstance(key.key, PUBLIC_KEYS):  # whoever fetches it can sign with it
        log.warning("token_key_is_private", algorithm=algorithm)
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        log.warning("token_key_too_short", bits=key.key.key_size)
        return None
    return key
