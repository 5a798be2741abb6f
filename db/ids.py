"""Identifiers made by the service: UUID version 7 (RFC 9562), so that ids sort by the time they were made."""

import secrets
from datetime import datetime
from uuid import UUID

_VERSION_7 = 0x7 << 76
_VARIANT_RFC = 0b10 << 62


def uuid7_sequence(now: datetime, count: int) -> list[UUID]:
    """Returns `count` ids in ascending order, made at `now`.

    48 bits of milliseconds, 12 bits of the fraction below (RFC 9562, method 3), 62 random bits. A sequence counts
    upwards through the random bits, so that a batch keeps its order.
    """
    microseconds = round(now.timestamp() * 1_000_000)
    milliseconds, rest = divmod(microseconds, 1_000)
    prefix = milliseconds << 80 | _VERSION_7 | (rest * 4_096 // 1_000) << 64 | _VARIANT_RFC
    # One bit is left clear, so that counting up never runs into the variant.
    first = secrets.randbits(61)
    return [UUID(int=prefix | first + offset) for offset in range(count)]
