"""Wire bytes made from a request's: fields repeated, dropped, retyped and nested, and bytes broken at random."""

from collections.abc import Callable
from random import Random

VARINT, FIXED64, DELIMITED, START_GROUP, END_GROUP, FIXED32 = range(6)

MAX_BYTES = 200_000
EXTREME_VARINTS = (0, 1, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
EXTREME_FIXED = (b"\0" * 8, b"\xff" * 8, b"\0\0\0\0\0\0\xf0\x7f", b"\0\0\0\0\0\0\xf8\x7f", b"\1" + b"\0" * 7)
BAD_TEXTS = (
    *(
        b"harbour",
        b"fuzz-0",
        b"en",
        b"2026-11-21T09:30:00Z",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
        b"\0",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"",
    ),
    *("\N{ZERO WIDTH JOINER}".encode(), b"' | '", b"\\", b'"a <-> b"', b"x" * 70_000),
)

Field = tuple[int, int, bytes]
"""Number, wire type, and the bytes of the value without its length."""


def varint(value: int) -> bytes:
    """Returns the base 128 encoding."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def parse(data: bytes) -> list[Field] | None:
    """Returns the fields of a message, None where these bytes are none; groups are taken for none."""
    fields: list[Field] = []
    place = 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        if tag is None or not tag >> 3:
            return None
        kind, start = tag & 7, place
        if kind == VARINT:
            value, place = _read_varint(data, place)
            if value is None:
                return None
        elif kind == DELIMITED:
            length, start = _read_varint(data, place)
            if length is None:
                return None
            place = start + length
        elif kind in {FIXED32, FIXED64}:
            place += 4 if kind == FIXED32 else 8
        else:
            return None
        if place > len(data):
            return None
        fields.append((tag >> 3, kind, data[start:place]))
    return fields


def _read_varint(data: bytes, place: int) -> tuple[int | None, int]:
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return None, place


def write(fields: list[Field]) -> bytes:
    """Returns the bytes of a message of these fields."""
    parts = []
    for number, kind, value in fields:
        parts.append(varint(number << 3 | kind))
        if kind == DELIMITED:
            parts.append(varint(len(value)))
        parts.append(value)
    return b"".join(parts)


def mutate(data: bytes, random: Random) -> bytes:
    """Returns other bytes: with one to three mutations of fields, or of bytes regardless of fields."""
    for _ in range(random.choice((1, 1, 2, 3))):
        fields = parse(data)
        data = (
            _break_bytes(data, random)
            if fields is None or random.random() < 0.25
            else write(_mutate_fields(fields, random))
        )
    return data[:MAX_BYTES]


def _mutate_fields(fields: list[Field], random: Random) -> list[Field]:
    """Returns the fields with one mutation, of a field of this message or of one inside it."""
    fields = list(fields)
    place = random.randrange(len(fields)) if fields else 0
    if fields:
        number, kind, value = fields[place]
        inner = parse(value) if kind == DELIMITED and value else None
        if inner and random.random() < 0.6:
            fields[place] = (number, kind, write(_mutate_fields(inner, random)))
            return fields
        return random.choice(_OPERATIONS)(fields, place, random)
    return [_unknown(random)]


def _drop(fields: list[Field], place: int, _random: Random) -> list[Field]:
    return fields[:place] + fields[place + 1 :]


def _repeat(fields: list[Field], place: int, random: Random) -> list[Field]:
    count = random.choice((1, 2, 100, 600, 6_000))
    count = min(count, MAX_BYTES // (len(fields[place][2]) + 8))
    return fields[:place] + [fields[place]] * count + fields[place:]


def _shuffle(fields: list[Field], _place: int, random: Random) -> list[Field]:
    return random.sample(fields, len(fields))


def _add_unknown(fields: list[Field], place: int, random: Random) -> list[Field]:
    return [*fields[:place], _unknown(random), *fields[place:]]


def _unknown(random: Random) -> Field:
    number = random.choice((1, 2, 7, 19_000, 100_000, 2**29 - 1))
    kind = random.choice((VARINT, FIXED64, DELIMITED, FIXED32))
    return number, kind, _value(kind, random)


def _value(kind: int, random: Random) -> bytes:
    match kind:
        case _ if kind == VARINT:
            return varint(random.choice(EXTREME_VARINTS))
        case _ if kind == DELIMITED:
            return random.choice(BAD_TEXTS)
        case _:
            return random.choice(EXTREME_FIXED)[: 8 if kind == FIXED64 else 4]


def _replace(fields: list[Field], place: int, random: Random) -> list[Field]:
    number, kind, _ = fields[place]
    fields[place] = (number, kind, _value(kind, random))
    return fields


def _retype(fields: list[Field], place: int, random: Random) -> list[Field]:
    kind = random.choice((VARINT, FIXED64, DELIMITED, FIXED32))
    fields[place] = (fields[place][0], kind, _value(kind, random))
    return fields


def _renumber(fields: list[Field], place: int, random: Random) -> list[Field]:
    _, kind, value = fields[place]
    fields[place] = (random.randint(1, 24), kind, value)
    return fields


def _nest(fields: list[Field], place: int, random: Random) -> list[Field]:
    """Puts a field into itself, again and again: deeper than any message may be."""
    number, kind, value = fields[place]
    if kind == DELIMITED:
        for _ in range(random.choice((1, 5, 30, 99, 150))):
            value = (write([(number, DELIMITED, value)]))[:MAX_BYTES]
        fields[place] = (number, kind, value)
    return fields


def _group(fields: list[Field], place: int, _random: Random) -> list[Field]:
    number, _, _ = fields[place]
    return [*fields[:place], (number, START_GROUP, b""), *fields[place:], (number, END_GROUP, b"")]


_OPERATIONS: tuple[Callable[[list[Field], int, Random], list[Field]], ...] = (
    *(_drop, _repeat, _shuffle, _add_unknown, _replace, _replace, _retype, _renumber, _nest, _group),
)


def _break_bytes(data: bytes, random: Random) -> bytes:
    broken = bytearray(data)
    place = random.randrange(len(broken) + 1)
    match random.randrange(5):
        case 0:
            return bytes(broken[:place])
        case 1:
            return bytes(broken[:place] + random.randbytes(random.randint(1, 8)) + broken[place:])
        case 2:
            return bytes(broken[:place] + broken[place + random.randint(1, 8) :])
        case 3:
            return bytes(broken + broken)
        case _:
            if place < len(broken):
                broken[place] ^= 1 << random.randrange(8)
            return bytes(broken)
