"""Rate limits: requests and embedded tokens, of each caller's key and of each user that is asked for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memory_service.access.authorization import users_of
from memory_service.access.errors import LimitExceeded
from memory_service.access.principal import Principal
from memory_service.access.request_cost import tokens_of
from memory_service.access.token_buckets import TokenBuckets
from memory_service.config import Settings
from memory_service.v1 import admin_pb2

SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class _Limit:
    """One of the rates."""

    setting: str
    whose: str
    what: str
    buckets: TokenBuckets


@dataclass(frozen=True, slots=True)
class _Charge:
    """What one request takes out of one bucket."""

    limit: _Limit
    name: str
    amount: float


class RateLimiter:
    """Counts what callers ask for and refuses what is too much; 3 to 10 µs for each limit that is set.

    Each process has buckets of its own, with its share of the rates: MEMORY_WORKERS processes together let in no more
    than is configured. A caller whose connections all lead to one of them is let in less.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepares the limits that are set; `clock` returns seconds."""

        def limits(whose: str, requests_per_s: float, tokens_per_min: float) -> tuple[_Limit | None, _Limit | None]:
            return (
                limit("REQUESTS", whose, "requests", requests_per_s),
                limit("TOKENS", whose, "tokens of text to embed", tokens_per_min / SECONDS_PER_MINUTE),
            )

        def limit(name: str, whose: str, what: str, rate_per_s: float) -> _Limit | None:
            if not rate_per_s:
                return None
            share = rate_per_s / settings.workers
            buckets = TokenBuckets(rate_per_s=share, burst_s=settings.rate_limit_burst_s, clock=clock)
            return _Limit(f"MEMORY_RATE_LIMIT_{name}_PER_{whose.upper()}", whose, what, buckets)

        self._requests_of_key, self._tokens_of_key = limits(
            "key", settings.rate_limit_requests_per_key, settings.rate_limit_tokens_per_key
        )
        self._requests_of_user, self._tokens_of_user = limits(
            "user", settings.rate_limit_requests_per_user, settings.rate_limit_tokens_per_user
        )

    def spend(self, principal: Principal, request: Any) -> None:
        """Charges a request message to the caller's key and to the users that it names, all or nothing.

        Raises:
            LimitExceeded: When one of them has used up what it may.
        """
        tokens = tokens_of(request) if self._tokens_of_key is not None or self._tokens_of_user is not None else 0
        self._take(self._charges(principal, request, requests=1, tokens=tokens))

    def spend_tokens(self, principal: Principal, request: Any, tokens: int) -> None:
        """Charges a request that was charged before for further tokens; raises likewise."""
        self._take(self._charges(principal, request, requests=0, tokens=tokens))

    def spend_denied(self, principal: Principal) -> None:
        """Charges the caller's key for a request that it may not make, and no user; raises likewise."""
        if self._requests_of_key is not None:
            self._take([_Charge(self._requests_of_key, principal.subject, 1)])

    def _take(self, charges: list[_Charge]) -> None:
        taken: list[_Charge] = []
        for charge in charges:
            wait_s = charge.limit.buckets.take(charge.name, charge.amount)
            if wait_s > 0:
                for earlier in taken:
                    earlier.limit.buckets.give_back(earlier.name, earlier.amount)
                raise LimitExceeded(
                    f"this {charge.limit.whose} has used up its {charge.limit.what}",
                    limit=charge.limit.setting,
                    retry_after_s=wait_s,
                )
            taken.append(charge)

    def _charges(self, principal: Principal, request: Any, *, requests: int, tokens: int) -> list[_Charge]:
        charges = []
        # The searches of a batch may repeat their user's id, or leave it empty. Administrators ask about users, not for
        # them: no user keeps them from it by asking for too much itself.
        is_users_own = self._limits_users and request.DESCRIPTOR.file is not admin_pb2.DESCRIPTOR
        users = set(users_of(request)) - {""} if is_users_own else ()
        for limit, amount in ((self._requests_of_key, requests), (self._tokens_of_key, tokens)):
            if limit is not None and amount:
                charges.append(_Charge(limit, principal.subject, amount))
        for limit, amount in ((self._requests_of_user, requests), (self._tokens_of_user, tokens)):
            if limit is not None and amount:
                charges.extend(_Charge(limit, user, amount) for user in users)
        return charges

    @property
    def _limits_users(self) -> bool:
        return self._requests_of_user is not None or self._tokens_of_user is not None


def create_limiter(settings: Settings) -> RateLimiter | None:
    """Returns what enforces the limits that are set, None where none is."""
    rates = (
        settings.rate_limit_requests_per_key,
        settings.rate_limit_requests_per_user,
        settings.rate_limit_tokens_per_key,
        settings.rate_limit_tokens_per_user,
    )
    return RateLimiter(settings) if any(rates) else None
