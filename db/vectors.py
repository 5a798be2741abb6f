"""Embeddings as the database keeps them: unit length in half precision, beside the norm they came with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector


class InvalidEmbedding(ValueError):
    """The numbers cannot be normalized; the message says why, without quoting them."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A vector split into direction and length: `unit` times `norm` is the original."""

    unit: NDArray[np.float16]
    """Shape (dimensions,), Euclidean length 1 within float16 precision (recall loss at most 0.0002)."""
    norm: float
    """Euclidean length of the original, greater than 0."""

    def original(self) -> NDArray[np.float32]:
        """Returns the vector as it was before normalization, shape (dimensions,), within float16 precision."""
        with np.errstate(over="ignore"):  # a norm near float32's largest may round a component to infinity
            return (self.unit.astype(np.float64) * self.norm).astype(np.float32)


def normalize(vector: NDArray[np.floating]) -> Embedding:
    """Normalizes a vector of shape (dimensions,) to unit length.

    Raises:
        InvalidEmbedding: When a component is NaN or infinite, or all are zero.
    """
    # In float64 the squares of float32's largest and smallest numbers neither overflow nor vanish.
    values = vector.astype(np.float64)
    norm = float(np.sqrt(values @ values))
    if not np.isfinite(norm):
        raise InvalidEmbedding(_first_not_finite(values))
    if norm == 0.0:
        raise InvalidEmbedding("is the zero vector, which has no direction")
    return Embedding(unit=(values / norm).astype(np.float16), norm=norm)


def _first_not_finite(values: NDArray[np.float64]) -> str:
    position = int(np.argmin(np.isfinite(values)))
    return f"is {'NaN' if np.isnan(values[position]) else 'infinite'} at position {position}"


def to_parameter(embedding: Embedding) -> HalfVector:
    """Returns the unit vector as a parameter that psycopg sends in binary."""
    return HalfVector(embedding.unit)


def from_column(value: HalfVector, norm: float) -> Embedding:
    """Returns what `embedding` and `embedding_norm` of a row hold."""
    return Embedding(unit=value.to_numpy(), norm=norm)
