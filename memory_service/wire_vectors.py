"""Embeddings between the wire's encodings and numpy."""

import numpy as np
from numpy.typing import NDArray

from db.vectors import Embedding, InvalidEmbedding, normalize
from memory_service.v1 import memory_pb2 as pb
from memory_service.violations import Violations

# Encoded bytes of one component; a float in a packed repeated field is 4 bytes as well.
COMPONENT_BYTES = {pb.VECTOR_ENCODING_FLOATS: 4, pb.VECTOR_ENCODING_F32_LE: 4, pb.VECTOR_ENCODING_F16_LE: 2}

_ENCODINGS = {
    "floats": pb.VECTOR_ENCODING_FLOATS,
    "f32_le": pb.VECTOR_ENCODING_F32_LE,
    "f16_le": pb.VECTOR_ENCODING_F16_LE,
}


def encoding_of(vector: pb.Vector) -> pb.VectorEncoding.ValueType:
    """Returns the encoding a request's vector came in; floats where it is empty."""
    kind = vector.WhichOneof("encoding")
    return pb.VECTOR_ENCODING_FLOATS if kind is None else _ENCODINGS[kind]


def read(vector: pb.Vector, path: str, dimensions: int, violations: Violations) -> Embedding | None:
    """Returns the normalized embedding, or None after noting what is wrong with it."""
    values = _decode(vector, path, violations)
    if values is None:
        return None
    if len(values) != dimensions:
        violations.add(
            path,
            f"has {len(values)} dimensions, expected {dimensions}",
            reason=pb.ERROR_REASON_DIMENSION_MISMATCH,
            received_dimensions=len(values),
            expected_dimensions=dimensions,
        )
        return None
    try:
        return normalize(values)
    except InvalidEmbedding as error:
        violations.add(path, str(error))
        return None


def _decode(vector: pb.Vector, path: str, violations: Violations) -> NDArray[np.floating] | None:
    kind = vector.WhichOneof("encoding")
    if kind is None:
        violations.add(path, "is empty; set one of floats, f32_le and f16_le")
        return None
    if kind == "floats":
        # protobuf 7.34 and later hand the numbers over in one copy.
        return np.asarray(vector.floats.values, dtype=np.float32)
    data, dtype = (vector.f32_le, np.dtype("<f4")) if kind == "f32_le" else (vector.f16_le, np.dtype("<f2"))
    if len(data) % dtype.itemsize:
        violations.add(f"{path}.{kind}", f"has {len(data)} bytes, not a multiple of {dtype.itemsize}")
        return None
    return np.frombuffer(data, dtype=dtype)


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
