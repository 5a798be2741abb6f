"""Page tokens: where a page ended, bound to the arguments it was asked with.

A token is no secret and no permission: whatever it says, the statement it leads to names the caller's user_id.
"""

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

from db.recent import Position
from memory_service.v1 import memory_pb2 as pb

_VERSION = 1
# Version, created_at in microseconds since 1970, id, and the first 8 bytes of a SHA-256 of these and the arguments.
_LAYOUT = struct.Struct(">Bq16s8s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class InvalidPageToken(ValueError):
    """The token was not made here, or for other arguments; the message says which."""


def encode(position: Position, request: pb.GetRecentRequest) -> str:
    """Returns the token of the page that follows `position`."""
    microseconds = (position.created_at - _EPOCH) // _MICROSECOND
    data = _LAYOUT.pack(_VERSION, microseconds, position.id.bytes, _fingerprint(microseconds, position.id, request))
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(token: str, request: pb.GetRecentRequest) -> Position:
    """Returns where the page before ended.

    Raises:
        InvalidPageToken: When the token is malformed, or belongs to a request with other arguments.
    """
    try:
        data = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, microseconds, id_bytes, fingerprint = _LAYOUT.unpack(data)
        created_at = _EPOCH + microseconds * _MICROSECOND
    except (binascii.Error, struct.error, OverflowError):
        raise InvalidPageToken("is not a page token of this service") from None
    if version != _VERSION:
        raise InvalidPageToken("is not a page token of this version of the service; start from the first page")
    memory_id = UUID(bytes=id_bytes)
    if fingerprint != _fingerprint(microseconds, memory_id, request):
        raise InvalidPageToken("was changed, or belongs to a request with another user_id, filter or show_deleted")
    return Position(created_at, memory_id)


def _fingerprint(microseconds: int, memory_id: UUID, request: pb.GetRecentRequest) -> bytes:
    scope = pb.GetRecentRequest(user_id=request.user_id, filter=request.filter, show_deleted=request.show_deleted)
    position = f"{microseconds}:{memory_id}:".encode()
    return hashlib.sha256(position + scope.SerializeToString(deterministic=True)).digest()[:8]
