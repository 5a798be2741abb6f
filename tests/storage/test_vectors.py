"""Embeddings: direction and length, kept apart and put together again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pgvector import HalfVector

from db.vectors import InvalidEmbedding, from_column, normalize, to_parameter

# float16 rounds to 11 bits: half a unit in the last place of the largest component is at most 2^-12.
ROUNDING = 2.0**-11


vectors = arrays.arrays(
    np.float32,
    st.integers(1, 32),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    fill=st.nothing(),
).filter(np.any)


@given(vectors)
def test_direction_and_length_make_the_original(vector: NDArray[np.float32]) -> None:
    embedding = normalize(vector)
    exact = vector.astype(np.float64)
    assert embedding.unit.dtype == np.float16
    assert np.isclose(np.linalg.norm(embedding.unit.astype(np.float64)), 1, rtol=0, atol=2 * ROUNDING)
    assert np.isclose(embedding.norm, np.linalg.norm(exact), rtol=1e-12)
    assert np.allclose(
        embedding.unit.astype(np.float64) * embedding.norm, exact, rtol=0, atol=ROUNDING * embedding.norm
    )
    assert np.isfinite(embedding.original()).all()


@pytest.mark.parametrize("size", [2.0**-24, 1.0, 65_504.0])
def test_half_precision_is_no_special_case(size: float) -> None:
    embedding = normalize(np.full(4, size, dtype=np.float16))
    assert embedding.norm == 2 * size
    assert embedding.unit.tolist() == [0.5] * 4


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1.0, 1e30, 3.4e38])
def test_extreme_lengths_neither_vanish_nor_overflow(size: float) -> None:
    vector = np.full(4, size, dtype=np.float32)
    embedding = normalize(vector)
    assert embedding.norm == pytest.approx(2 * float(vector[0]))
    assert embedding.unit.tolist() == [0.5] * 4
    assert embedding.original().tolist() == vector.tolist()


@pytest.mark.parametrize("small", [0.0, 3e36, 1.5e38])
def test_the_largest_numbers_come_back_finite(small: float) -> None:
    # float16 rounds a component up now and then, which is then more than float32 holds.
    vector = np.array([np.finfo(np.float32).max, small, -np.finfo(np.float32).max], dtype=np.float32)
    original = normalize(vector).original()
    assert np.isfinite(original).all()
    assert original == pytest.approx(vector, rel=ROUNDING, abs=2 * ROUNDING * float(vector[0]))


@pytest.mark.parametrize(
    ("vector", "description"),
    [
        ([0.0, -0.0, 0.0], "is the zero vector, which has no direction"),
        ([1.0, float("nan"), 1.0], "is NaN at position 1"),
        ([1.0, 1.0, float("inf")], "is infinite at position 2"),
        ([float("-inf"), float("nan"), 1.0], "is infinite at position 0"),
    ],
)
def test_what_cannot_be_normalized(vector: list[float], description: str) -> None:
    with pytest.raises(InvalidEmbedding) as caught:
        normalize(np.array(vector, dtype=np.float32))
    assert str(caught.value) == description


def test_columns_and_parameters() -> None:
    embedding = normalize(np.array([3.0, 4.0], dtype=np.float32))
    parameter = to_parameter(embedding)
    assert isinstance(parameter, HalfVector)
    again = from_column(parameter, embedding.norm)
    assert again.norm == 5.0
    assert again.unit.tolist() == embedding.unit.tolist()
