"""Calls made of hand-written HTTP/2 frames, for headers that gRPC's own client would not send."""

import re
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MAX_FRAME_BYTES = 16_384
TIMEOUT_S = 10.0

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended."""

    status: int | None
    """grpc-status; None where the stream or the connection was ended without."""
    received: bytes
    """All header blocks and errors, undecoded."""


class _Frame(NamedTuple):
    kind: int
    flags: int
    payload: bytes


def call(address: str, method: str, message: bytes, headers: Headers) -> Answer:
    """Makes a unary call over a connection of its own, with these headers beside those that gRPC asks for."""
    every = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", address.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *headers,
    ]
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        frames = _frames_of(connection)
        connection.sendall(PREFACE + _frame(SETTINGS, 0, b"", stream=0))
        # A server holds clients to its limits from when they say that they know them.
        while (frame := next(frames)).kind != SETTINGS or frame.flags & ACK:
            pass
        connection.sendall(_frame(SETTINGS, ACK, b"", stream=0) + _header_frames(every))
        with suppress(OSError):  # where the headers were enough for the server; why may have come
            connection.sendall(_frame(DATA, END_STREAM, struct.pack(">BI", 0, len(message)) + message))
        return _answer(frames)


def _header_frames(headers: Headers) -> bytes:
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)
    pieces = [block[start : start + MAX_FRAME_BYTES] for start in range(0, len(block), MAX_FRAME_BYTES)]
    kinds = [HEADERS, *[CONTINUATION] * (len(pieces) - 1)]
    flags = [*[0] * (len(pieces) - 1), END_HEADERS]
    return b"".join(map(_frame, kinds, flags, pieces))


def _frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _text(value: bytes) -> bytes:
    """Returns a string literal of HPACK, not compressed (RFC 7541, 5.2)."""
    return _length(len(value)) + value


def _length(number: int) -> bytes:
    if number < 0x7F:
        return bytes([number])
    octets, number = [0x7F], number - 0x7F
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def _frames_of(connection: socket.socket) -> Iterator[_Frame]:
    """Yields what the other end sends, until it closes the connection."""
    with connection.makefile("rb") as stream, suppress(OSError):
        while len(head := stream.read(9)) == 9:
            yield _Frame(head[3], head[4], stream.read(int.from_bytes(head[:3])))


def _answer(frames: Iterator[_Frame]) -> Answer:
    received = b""
    for frame in frames:
        if frame.kind in {HEADERS, RST_STREAM, GOAWAY}:
            received += frame.payload
        if frame.kind in {RST_STREAM, GOAWAY} or (frame.kind == HEADERS and frame.flags & END_STREAM):
            break
    # The first time a connection tells it, it stands there in full, behind its length.
    status = re.search(rb"grpc-status[\x01\x02]([0-9]{1,2})", received)
    return Answer(None if status is None else int(status[1]), received)
