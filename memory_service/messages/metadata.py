"""Metadata: from protobuf's Struct to the dictionaries that the database stores as JSON, within their limits."""

import json
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from memory_service.limits import Limits

MAX_EXACT_INTEGER = 2**53


class InvalidMetadata(ValueError):
    """The Struct cannot be stored; the message says why."""


class _TooDeep(Exception):
    """The Struct has more levels than are left."""


def from_struct(struct: Struct, limits: Limits) -> dict[str, Any]:
    """Returns the Struct as a dictionary that JSON can hold.

    Whole numbers become integers, so that 1 is stored as 1 and not as 1.0.

    Raises:
        InvalidMetadata: When it is too large, too deeply nested, or holds NaN, infinity or a NUL character.
    """
    try:
        dictionary = _dictionary(struct, limits.max_metadata_depth)
    except _TooDeep:
        raise InvalidMetadata(f"is nested deeper than the {limits.max_metadata_depth} levels allowed") from None
    size = encoded_size(dictionary)
    if size > limits.max_metadata_bytes:
        raise InvalidMetadata(f"has {size} bytes as JSON, at most {limits.max_metadata_bytes} are allowed")
    return dictionary


def encoded_size(metadata: Mapping[str, Any]) -> int:
    """Returns the bytes of the metadata as compact JSON in UTF-8."""
    return len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())


def _dictionary(struct: Struct, levels_left: int) -> dict[str, Any]:
    _check_level(levels_left)
    return {_text(key): _python(value, levels_left - 1) for key, value in struct.fields.items()}


def _list(values: ListValue, levels_left: int) -> list[Any]:
    _check_level(levels_left)
    return [_python(value, levels_left - 1) for value in values.values]


def _python(value: Value, levels_left: int) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return _text(value.string_value)
        case "number_value":
            return _number(value.number_value)
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _dictionary(value.struct_value, levels_left)
        case "list_value":
            return _list(value.list_value, levels_left)
        case _:
            return None


def _check_level(levels_left: int) -> None:
    if levels_left <= 0:
        raise _TooDeep


def _text(text: str) -> str:
    if "\0" in text:
        raise InvalidMetadata("holds a NUL character, which PostgreSQL cannot store")
    return text


def _number(number: float) -> int | float:
    if not math.isfinite(number):
        raise InvalidMetadata("holds NaN or infinity, which JSON cannot represent")
    if number.is_integer() and abs(number) <= MAX_EXACT_INTEGER:
        return int(number)
    return number
