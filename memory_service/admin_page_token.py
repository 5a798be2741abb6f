"""Page tokens of AdminService: where a page ended, bound to the arguments it was asked with.

A token is no secret and no permission: the call it comes with is an administrator's, and its own arguments say what is
read.
"""

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

from google.protobuf.message import Message

from db.audit import AuditPosition
from memory_service.messages.page_token import InvalidPageToken

_VERSION = b"\x01"
_CHECK_BYTES = 8
_AUDIT = struct.Struct(">q16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NOT_OURS = "is not a page token of this service"


def encode(position: str, scope: Message) -> str:
    """Returns the token of the page that follows `position`, for requests that agree in `scope`."""
    return _encode(position.encode(), scope)


def decode(token: str, scope: Message) -> str:
    """Returns where the page before ended.

    Raises:
        InvalidPageToken: When the token is malformed, or belongs to a request with other arguments.
    """
    try:
        return _decode(token, scope).decode()
    except UnicodeDecodeError:  # made by hand, check and all
        raise InvalidPageToken(_NOT_OURS) from None


def encode_audit(position: AuditPosition, scope: Message) -> str:
    """Returns the token of the page that follows an entry of the audit log."""
    return _encode(_AUDIT.pack((position.at - _EPOCH) // _MICROSECOND, position.id.bytes), scope)


def decode_audit(token: str, scope: Message) -> AuditPosition:
    """Returns the entry that the page before ended with; raises as `decode` does."""
    try:
        microseconds, id_bytes = _AUDIT.unpack(_decode(token, scope))
        return AuditPosition(_EPOCH + microseconds * _MICROSECOND, UUID(bytes=id_bytes))
    except (struct.error, OverflowError):  # likewise
        raise InvalidPageToken(_NOT_OURS) from None


def _encode(position: bytes, scope: Message) -> str:
    return base64.urlsafe_b64encode(_VERSION + _check(position, scope) + position).decode().rstrip("=")


def _decode(token: str, scope: Message) -> bytes:
    try:
        data = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise InvalidPageToken(_NOT_OURS) from None
    check, position = data[1 : 1 + _CHECK_BYTES], data[1 + _CHECK_BYTES :]
    if data[:1] != _VERSION or check != _check(position, scope):
        raise InvalidPageToken("is not a page token of this service, or belongs to a request with other arguments")
    return position


def _check(position: bytes, scope: Message) -> bytes:
    kind = scope.DESCRIPTOR.full_name.encode()
    arguments = scope.SerializeToString(deterministic=True)
    return hashlib.sha256(kind + b"\0" + position + b"\0" + arguments).digest()[:_CHECK_BYTES]
