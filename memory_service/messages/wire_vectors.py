"""Embeddings between the wire's encodings and numpy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from db.vectors import Embedding, InvalidEmbedding, normalize, normalize_rows
from memory_service.messages.violations import Violations
from memory_service.v1 import memory_pb2 as pb

# Encoded bytes of one component; a float in a packed repeated field is 4 bytes as well.
COMPONENT_BYTES = {pb.VECTOR_ENCODING_FLOATS: 4, pb.VECTOR_ENCODING_F32_LE: 4, pb.VECTOR_ENCODING_F16_LE: 2}

_ENCODINGS = {
    "floats": pb.VECTOR_ENCODING_FLOATS,
    "f32_le": pb.VECTOR_ENCODING_F32_LE,
    "f16_le": pb.VECTOR_ENCODING_F16_LE,
}

_F32, _F16 = np.dtype("<f4"), np.dtype("<f2")


def encoding_of(vector: pb.Vector) -> pb.VectorEncoding.ValueType:
    """Returns the encoding a request's vector came in; floats where it is empty."""
    kind = vector.WhichOneof("encoding")
    return pb.VECTOR_ENCODING_FLOATS if kind is None else _ENCODINGS[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorFault:
    """What is wrong with a vector."""

    description: str
    reason: pb.ErrorReason.ValueType = pb.ERROR_REASON_INVALID_FIELD
    inner_path: str = ""
    """The field of the vector at fault, where it is not the vector as a whole."""
    facts: Mapping[str, object] = field(default_factory=dict)

    def note(self, path: str, violations: Violations) -> None:
        """Notes it, for the vector at `path`."""
        violations.add(path + self.inner_path, self.description, reason=self.reason, **self.facts)


def read(vector: pb.Vector, path: str, dimensions: int, violations: Violations) -> Embedding | None:
    """Returns the normalized embedding, or None after noting what is wrong with it."""
    found = _normalized(_decode(vector, dimensions))
    if isinstance(found, Embedding):
        return found
    found.note(path, violations)
    return None


def _normalized(values: NDArray[np.floating] | VectorFault) -> Embedding | VectorFault:
    if isinstance(values, VectorFault):
        return values
    try:
        return normalize(values)
    except InvalidEmbedding as error:
        return VectorFault(description=str(error))


def read_all(vectors: Iterable[pb.Vector], dimensions: int) -> list[Embedding | VectorFault]:
    """Returns for each vector its normalized embedding, or what is wrong with it."""
    decoded = [_decode(vector, dimensions) for vector in vectors]
    rows = [values for values in decoded if not isinstance(values, VectorFault)]
    normalized = iter(normalize_rows(np.stack(rows)) if rows else ())
    return [values if isinstance(values, VectorFault) else _or_fault(next(normalized)) for values in decoded]


def _or_fault(found: Embedding | InvalidEmbedding) -> Embedding | VectorFault:
    return found if isinstance(found, Embedding) else VectorFault(description=str(found))


def _decode(vector: pb.Vector, dimensions: int) -> NDArray[np.floating] | VectorFault:
    kind = vector.WhichOneof("encoding")
    values: NDArray[np.floating]
    if kind is None:
        return VectorFault(description="is empty; set one of floats, f32_le and f16_le")
    if kind == "floats":
        # protobuf 7.34 and later hand the numbers over in one copy.
        values = np.asarray(vector.floats.values, dtype=np.float32)
    else:
        data, dtype = (vector.f32_le, _F32) if kind == "f32_le" else (vector.f16_le, _F16)
        if len(data) % dtype.itemsize:
            description = f"has {len(data)} bytes, not a multiple of {dtype.itemsize}"
            return VectorFault(description=description, inner_path=f".{kind}")
        values = np.frombuffer(data, dtype=dtype)
    if len(values) != dimensions:
        return VectorFault(
            description=f"has {len(values)} dimensions, expected {dimensions}",
            reason=pb.ERROR_REASON_DIMENSION_MISMATCH,
            facts={"received_dimensions": len(values), "expected_dimensions": dimensions},
        )
    return values


def write(embedding: Embedding, encoding: pb.VectorEncoding.ValueType) -> pb.Vector:
    """Returns the original vector (unit times norm) in the given encoding."""
    original = embedding.original()
    if encoding == pb.VECTOR_ENCODING_F32_LE:
        return pb.Vector(f32_le=original.astype("<f4", copy=False).tobytes())
    if encoding == pb.VECTOR_ENCODING_F16_LE:
        with np.errstate(over="ignore"):  # beyond 65,504 float16 has only infinity
            return pb.Vector(f16_le=original.astype("<f2").tobytes())
    # From a list: handing over the array itself is three times slower.
    return pb.Vector(floats=pb.FloatArray(values=original.tolist()))
