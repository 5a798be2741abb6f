"""Metadata as callers send it."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct


def to_struct(metadata: Mapping[str, Any]) -> Struct:
    """Returns the metadata as a Struct."""
    struct = Struct()
    struct.update(metadata)
    return struct
