"""Real text embeddings: sentences and questions of the Cranfield collection, embedded by the local model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.clustered import Vectors, unit
from harness import cranfield
from memory_service.embedding.local import LocalEmbedder

EMBED_LIMIT_S = 120.0
HALF = np.float32(0.5)


@dataclass(frozen=True, slots=True)
class RealText:
    """Distinct sentences and the collection's questions, with their embeddings at unit length."""

    sentences: list[str]
    vectors: Vectors
    questions: Vectors


def read(place: Path) -> RealText:
    """Reads and embeds the collection."""
    sentences = cranfield.read_sentences(place)
    embedder = LocalEmbedder()
    return RealText(
        sentences,
        unit(embedder.embed(sentences, timeout_s=EMBED_LIMIT_S)),
        unit(embedder.embed(cranfield.read_questions(place), timeout_s=EMBED_LIMIT_S)),
    )


def expanded(vectors: Vectors, count: int, *, seed: int) -> Vectors:
    """Returns `count` vectors x_i + 0.5 (x_j - x_k) of random rows i, j, k, at unit length: more rows of one kind."""
    random = np.random.default_rng(seed)
    first, second, third = random.integers(0, len(vectors), (3, count))
    return unit(vectors[first] + HALF * (vectors[second] - vectors[third]))
