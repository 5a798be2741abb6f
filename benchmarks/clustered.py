"""Synthetic embeddings that look like those of text: clustered, of low rank, with a decaying spectrum.

Isotropic random vectors would be dishonest: every vector is about as far from the query as every other, so ANN
indexes and sign bits look far worse on them than on text. The constants were set by comparison with real embeddings
at 10,000 rows: the nearest neighbour at a cosine of 0.7 against a median of 0.1, and a recall@10 of the best 50 / 100
/ 200 by Hamming distance of 0.98 / 0.997 / 1.000 at 1536 dimensions (real paragraphs: 0.99 / 0.98-0.999 / 0.997-1.0).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANK = 384
DECAY = 0.8
"""Variance of the i-th latent direction is proportional to i^-DECAY."""
SPREAD = 0.8
"""Of a topic's members around its centre, relative to the spread of the centres."""
MEAN = 0.5
"""Length of the component that all embeddings share."""
NOISE = 0.3
"""Length of what is left over in all directions."""
TOPIC_SKEW = 0.7
"""Topics have Zipf-like weights rank^-TOPIC_SKEW within a user."""
ROWS_PER_TOPIC = 50
BLOCK = 20_000

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """Vectors of unit length, shape (n, dimensions), and the topic of each, shape (n,)."""

    vectors: Vectors
    topics: NDArray[np.int64]


class ClusteredSpace:
    """A space of `dimensions` with a fixed basis, drawn from `seed`."""

    def __init__(self, dimensions: int, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        rank = min(RANK, dimensions)
        scale = np.arange(1, rank + 1) ** (-DECAY / 2)
        self._scale = (scale / np.linalg.norm(scale)).astype(np.float32)
        basis, _ = np.linalg.qr(random.standard_normal((dimensions, rank)))
        self._basis = basis.T.astype(np.float32)
        direction = random.standard_normal(dimensions)
        self._mean = (MEAN * direction / np.linalg.norm(direction)).astype(np.float32)
        self.dimensions = dimensions

    def draw(self, *sizes: int, seed: int) -> list[Sample]:
        """Returns one sample a size, all over the same topics; rows_per_topic relates to the first size."""
        random = np.random.default_rng(seed)
        topics = max(4, sizes[0] // ROWS_PER_TOPIC)
        centres = random.standard_normal((topics, len(self._scale)), dtype=np.float32)
        weights = np.arange(1, topics + 1) ** -TOPIC_SKEW
        return [self._sample(random, centres, weights / weights.sum(), size) for size in sizes]

    def _sample(self, random: np.random.Generator, centres: Vectors, weights: NDArray[np.float64], size: int) -> Sample:
        topics = random.choice(len(centres), size, p=weights)
        vectors = np.empty((size, self.dimensions), np.float32)
        noise = np.float32(NOISE / np.sqrt(self.dimensions))
        for start in range(0, size, BLOCK):
            block = topics[start : start + BLOCK]
            latent = centres[block] + np.float32(SPREAD) * random.standard_normal(
                (len(block), len(self._scale)), dtype=np.float32
            )
            rows = (latent * self._scale) @ self._basis + self._mean
            rows += noise * random.standard_normal(rows.shape, dtype=np.float32)
            vectors[start : start + BLOCK] = unit(rows)
        return Sample(vectors, topics)


def unit(vectors: Vectors) -> Vectors:
    """Returns the vectors, shape (n, dimensions), at length 1."""
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
