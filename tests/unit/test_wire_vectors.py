"""Vectors on the wire: three encodings of the same numbers, and what cannot be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from db.vectors import normalize
from memory_service.messages.violations import Violations
from memory_service.messages.wire_vectors import COMPONENT_BYTES, encoding_of, read, write
from memory_service.v1 import memory_pb2 as pb

ENCODINGS = [pb.VECTOR_ENCODING_FLOATS, pb.VECTOR_ENCODING_F32_LE, pb.VECTOR_ENCODING_F16_LE]

# What float16 holds exactly, so that all encodings hold it.
halves = st.integers(-2_047, 2_047).map(lambda number: number / 16)
vectors = st.lists(halves, min_size=1, max_size=32).map(lambda numbers: np.array([*numbers, 1.0], dtype=np.float32))


def encoded(vector: NDArray[np.floating], encoding: pb.VectorEncoding.ValueType) -> pb.Vector:
    """Encodes as a caller does."""
    match encoding:
        case pb.VECTOR_ENCODING_F32_LE:
            return pb.Vector(f32_le=vector.astype("<f4").tobytes())
        case pb.VECTOR_ENCODING_F16_LE:
            return pb.Vector(f16_le=vector.astype("<f2").tobytes())
        case _:
            return pb.Vector(floats=pb.FloatArray(values=vector.tolist()))


def decoded(vector: pb.Vector) -> NDArray[np.float32]:
    """Decodes as a caller does."""
    match vector.WhichOneof("encoding"):
        case "f32_le":
            return np.frombuffer(vector.f32_le, "<f4").astype(np.float32)
        case "f16_le":
            return np.frombuffer(vector.f16_le, "<f2").astype(np.float32)
        case _:
            return np.array(vector.floats.values, dtype=np.float32)


@given(vectors)
def test_encodings_hold_the_same_numbers(vector: NDArray[np.float32]) -> None:
    violations = Violations()
    found = [read(encoded(vector, encoding), "v", len(vector), violations) for encoding in ENCODINGS]
    expected = normalize(vector)
    assert violations.found == []
    for embedding in found:
        assert embedding is not None
        assert embedding.norm == expected.norm
        assert embedding.unit.tobytes() == expected.unit.tobytes()


@given(vectors, st.sampled_from(ENCODINGS), st.sampled_from(ENCODINGS))
def test_what_is_read_can_be_written(
    vector: NDArray[np.float32],
    received: pb.VectorEncoding.ValueType,
    wanted: pb.VectorEncoding.ValueType,
) -> None:
    embedding = read(encoded(vector, received), "v", len(vector), Violations())
    assert embedding is not None
    reply = write(embedding, wanted)
    assert encoding_of(reply) == wanted
    assert decoded(reply) == pytest.approx(vector, abs=2 * 2.0**-11 * embedding.norm)
    if wanted == pb.VECTOR_ENCODING_F32_LE:
        assert decoded(reply).tobytes() == embedding.original().tobytes()
    # The second journey loses next to nothing: the direction is in float16 already.
    again = read(reply, "v", len(vector), Violations())
    assert again is not None
    assert np.allclose(again.unit.astype(float), embedding.unit.astype(float), atol=2.0**-10)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sizes_are_those_announced(encoding: pb.VectorEncoding.ValueType) -> None:
    embedding = normalize(np.ones(1_000, dtype=np.float32))
    overhead = write(embedding, encoding).ByteSize() - 1_000 * COMPONENT_BYTES[encoding]
    assert 0 <= overhead < 10


def test_encoding_of_a_request() -> None:
    assert [encoding_of(encoded(np.ones(2), encoding)) for encoding in ENCODINGS] == ENCODINGS
    assert encoding_of(pb.Vector()) == pb.VECTOR_ENCODING_FLOATS


@pytest.mark.parametrize(
    ("vector", "field", "description"),
    [
        (pb.Vector(), "v", "is empty; set one of floats, f32_le and f16_le"),
        (pb.Vector(f32_le=b"\0" * 7), "v.f32_le", "has 7 bytes, not a multiple of 4"),
        (pb.Vector(f16_le=b"\0" * 7), "v.f16_le", "has 7 bytes, not a multiple of 2"),
        (encoded(np.zeros(4), pb.VECTOR_ENCODING_FLOATS), "v", "is the zero vector, which has no direction"),
        (encoded(np.array([1, np.nan, 1, 1]), pb.VECTOR_ENCODING_F32_LE), "v", "is NaN at position 1"),
        (encoded(np.array([1, 1, 1, np.inf]), pb.VECTOR_ENCODING_F16_LE), "v", "is infinite at position 3"),
        (encoded(np.array([-np.inf, 1, 1, np.nan]), pb.VECTOR_ENCODING_FLOATS), "v", "is infinite at position 0"),
    ],
)
def test_what_cannot_be_read(vector: pb.Vector, field: str, description: str) -> None:
    violations = Violations()
    assert read(vector, "v", 4, violations) is None
    [violation] = violations.found
    assert (violation.field, violation.description) == (field, description)
    assert violation.reason == pb.ERROR_REASON_INVALID_FIELD
    assert violations.facts == {}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("received", [0, 3, 5])
def test_wrong_dimensions_are_told_apart(encoding: pb.VectorEncoding.ValueType, received: int) -> None:
    violations = Violations()
    assert read(encoded(np.ones(received), encoding), "v", 4, violations) is None
    [violation] = violations.found
    assert violation.description == f"has {received} dimensions, expected 4"
    assert violation.reason == pb.ERROR_REASON_DIMENSION_MISMATCH
    assert violations.facts == {"received_dimensions": str(received), "expected_dimensions": "4"}


@given(st.binary(max_size=40), st.sampled_from(["f32_le", "f16_le"]))
def test_any_bytes_are_read_or_refused(data: bytes, kind: str) -> None:
    violations = Violations()
    vector = pb.Vector(f32_le=data) if kind == "f32_le" else pb.Vector(f16_le=data)
    embedding = read(vector, "v", 4, violations)
    assert (embedding is None) == bool(violations.found)
    if embedding is not None:
        assert embedding.norm > 0
        assert np.isfinite(embedding.unit).all()


def test_a_length_beyond_float16_is_written_as_infinity() -> None:
    embedding = normalize(np.array([1e6, 0.0], dtype=np.float32))
    assert decoded(write(embedding, pb.VECTOR_ENCODING_F16_LE)).tolist() == [np.inf, 0.0]
    assert decoded(write(embedding, pb.VECTOR_ENCODING_F32_LE)).tolist() == [1e6, 0.0]
