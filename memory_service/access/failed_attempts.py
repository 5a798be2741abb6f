"""Calls without valid credentials: how many an address may make, so that whoever guesses or goes on costs little.

Only failures count, and they count for the address they come from: a caller whose credentials are good is let in
whatever others at its address do, behind a proxy or a shared gateway as well.
"""

import ipaddress
import time
from collections.abc import Callable
from urllib.parse import unquote

from memory_service.access.errors import LimitExceeded
from memory_service.access.token_buckets import TokenBuckets
from memory_service.config import Settings

LIMIT = "MEMORY_RATE_LIMIT_UNAUTHENTICATED_PER_PEER"

# Addresses remembered, 2 MB; beyond that, the one that has been quiet the longest begins anew.
MAX_ADDRESSES = 10_000
# Whoever has one address of IPv6 has these many bits' worth of them (RFC 6177).
IPV6_NETWORK_BITS = 64


class FailedAttempts:
    """Counts the failures of each address; each process has its share of the rate."""

    def __init__(self, *, rate_per_s: float, burst_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepares to count; `clock` returns seconds."""
        self._buckets = TokenBuckets(rate_per_s=rate_per_s, burst_s=burst_s, max_buckets=MAX_ADDRESSES, clock=clock)

    def used_up(self, peer: str) -> bool:
        """Whether the next failure of this peer, as gRPC names it, is one too many."""
        return self._buckets.wait_s(address_of(peer), 1) > 0

    def count(self, peer: str) -> None:
        """Takes note of a failure.

        Raises:
            LimitExceeded: When it is one too many; it is not counted then, so that waiting helps.
        """
        wait_s = self._buckets.take(address_of(peer), 1)
        if wait_s > 0:
            raise LimitExceeded(
                "too many calls from this address came without valid credentials", limit=LIMIT, retry_after_s=wait_s
            )


def create_failed_attempts(settings: Settings) -> FailedAttempts | None:
    """Returns what enforces the limit, None where there is none."""
    if not settings.rate_limit_unauthenticated_per_peer:
        return None
    return FailedAttempts(
        rate_per_s=settings.rate_limit_unauthenticated_per_peer / settings.workers, burst_s=settings.rate_limit_burst_s
    )


def address_of(peer: str) -> str:
    """Returns what stands for a peer: its address without the port, of IPv6 the network it may choose one from.

    `peer` is as gRPC writes it: ipv4:192.0.2.7:52110, ipv6:%5B2001:db8::7%5D:52110, unix:/path.
    """
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return kind
    host = unquote(rest).rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))
    return str(address)
