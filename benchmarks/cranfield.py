"""Real text embeddings: sentences and questions of the Cranfield collection, embedded by the local model.

The collection is not part of the repository. BENCHMARK_CRANFIELD names its folder (cran.all.1400, cran.qry);
unset, ../shared/data/cranfield is looked for beside the repository.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.clustered import Vectors, unit
from memory_service.embedding.local import LocalEmbedder

VARIABLE = "BENCHMARK_CRANFIELD"
DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "cranfield"
MIN_WORDS = 5
EMBED_LIMIT_S = 120.0
HALF = np.float32(0.5)


@dataclass(frozen=True, slots=True)
class RealText:
    """Distinct sentences and the collection's questions, with their embeddings at unit length."""

    sentences: list[str]
    vectors: Vectors
    questions: Vectors


def folder() -> Path | None:
    """Returns where the collection lies, or None where there is none."""
    named = os.environ.get(VARIABLE)
    place = Path(named) if named else DEFAULT
    return place if (place / "cran.all.1400").is_file() and (place / "cran.qry").is_file() else None


def read(place: Path) -> RealText:
    """Reads and embeds the collection."""
    sentences = read_sentences(place)
    questions = [_flat(text) for text in _bodies((place / "cran.qry").read_text())]
    embedder = LocalEmbedder()
    return RealText(
        sentences,
        unit(embedder.embed(sentences, timeout_s=EMBED_LIMIT_S)),
        unit(embedder.embed(questions, timeout_s=EMBED_LIMIT_S)),
    )


def read_sentences(place: Path) -> list[str]:
    """Returns the distinct sentences of the collection."""
    return _sentences((place / "cran.all.1400").read_text())


def expanded(vectors: Vectors, count: int, *, seed: int) -> Vectors:
    """Returns `count` vectors x_i + 0.5 (x_j - x_k) of random rows i, j, k, at unit length: more rows of one kind."""
    random = np.random.default_rng(seed)
    first, second, third = random.integers(0, len(vectors), (3, count))
    return unit(vectors[first] + HALF * (vectors[second] - vectors[third]))


def _sentences(text: str) -> list[str]:
    found = [
        sentence.strip()
        for body in _bodies(text)
        for sentence in re.split(r"\s\.(?:\s+|$)", _flat(body))
        if len(sentence.split()) >= MIN_WORDS
    ]
    return list(dict.fromkeys(found))


def _bodies(text: str) -> list[str]:
    documents = re.split(r"^\.I \d+\n", text, flags=re.MULTILINE)[1:]
    return [document.split(".W\n", 1)[1] for document in documents if ".W\n" in document]


def _flat(text: str) -> str:
    return " ".join(text.split())
