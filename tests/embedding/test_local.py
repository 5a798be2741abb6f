"""Tests of the local embedder, on the real model."""

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import wordllama

from memory_service.embedding.errors import EmbedderUnavailable, TextNotEmbeddable
from memory_service.embedding.local import LocalEmbedder

KIB = 1_024
MIB = 1_024 * KIB

TEXTS = [
    "The user is allergic to peanuts.",
    "x",
    "She moved from Lisbon to Oslo in March and misses the sun. " * 40,
    "\u200b",
    "日本語のテキスト",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "line one\nline two\ttabbed\x00",
    "\U0001f9ff" * 300,
]


@pytest.fixture(scope="module")
def embedder() -> LocalEmbedder:
    return LocalEmbedder()


def test_a_batch_equals_its_texts_embedded_singly(embedder: LocalEmbedder) -> None:
    batch = embedder.embed(TEXTS, timeout_s=10)
    singly = [embedder.embed([text], timeout_s=10)[0] for text in TEXTS]

    assert batch.shape == (len(TEXTS), embedder.dimensions)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, np.stack(singly))


def test_vectors_are_those_of_wordllama_itself(embedder: LocalEmbedder) -> None:
    own = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True, dim=256)

    np.testing.assert_allclose(embedder.embed(TEXTS, timeout_s=10), own.embed(TEXTS), rtol=1e-4, atol=1e-5)


def test_related_texts_are_closer_than_unrelated_ones(embedder: LocalEmbedder) -> None:
    vectors = embedder.embed(
        ["What is the user allergic to?", TEXTS[0], "The train to Oslo leaves at nine."], timeout_s=10
    )
    question, related, unrelated = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    assert question @ related > question @ unrelated + 0.2


def test_no_texts_give_no_vectors(embedder: LocalEmbedder) -> None:
    assert embedder.embed([], timeout_s=1).shape == (0, 256)


@pytest.mark.parametrize("blank", ["", " ", "\n\t \u2003"])
def test_blank_text_is_refused_by_index(embedder: LocalEmbedder, blank: str) -> None:
    with pytest.raises(TextNotEmbeddable, match="text 1 has nothing to embed") as refused:
        embedder.embed(["fine", blank, "fine"], timeout_s=1)

    assert (refused.value.index, refused.value.reason) == (1, "has nothing to embed")


def test_every_character_gives_a_vector(embedder: LocalEmbedder) -> None:
    characters = [chr(code) for code in range(1, 0x110000, 97) if not 0xD800 <= code <= 0xDFFF]
    texts = [character for character in characters if not character.isspace()]

    vectors = embedder.embed(texts, timeout_s=30)

    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1).min() > 0


def test_one_long_text_does_not_pad_its_batch(embedder: LocalEmbedder) -> None:
    # Padded to the longest, these would gather 64 x 32,769 token vectors of 1 KiB: 2 GiB, and as much to mask them.
    texts = ["z" * 64 * KIB] + ["short"] * 63

    tracemalloc.start()
    try:
        embedder.embed(texts, timeout_s=30)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 8 * MIB


def test_ever_new_texts_leave_nothing_behind(embedder: LocalEmbedder) -> None:
    words = ["harbour", "cello", "Ada", "ice", "the", "of", "others", "zeppelin", "memory", "Zürich"]

    def embed(count: int, *, first: int) -> int:
        """Embeds short texts one by one, and returns what the process takes afterwards."""
        for number in range(first, first + count):
            text = " ".join(f"{word}{number * 7 + place}" for place, word in enumerate(words * 2))
            embedder.embed([text], timeout_s=10)
        return int(psutil.Process().memory_info().rss)

    before = embed(500, first=0)
    assert embed(2_500, first=500) - before < 4 * MIB, "the tokenizer's own cache takes 6 KiB for each"


def test_the_deadline_ends_a_long_batch(embedder: LocalEmbedder) -> None:
    with pytest.raises(EmbedderUnavailable, match=r"8 texts took longer than 0\.001 s"):
        embedder.embed(["word " * 10_000] * 8, timeout_s=0.001)


def test_many_threads_get_the_vectors_one_thread_gets(embedder: LocalEmbedder) -> None:
    expected = embedder.embed(TEXTS, timeout_s=10)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: embedder.embed(TEXTS, timeout_s=10), range(64)))

    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_it_is_not_worth_caching(embedder: LocalEmbedder) -> None:
    assert not embedder.cacheable
    assert (embedder.model, embedder.dimensions) == ("wordllama-l2-supercat-256", 256)
    embedder.close()


LONELY = """
import logging, os, sys

def watch(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}:
        sys.exit(f"network: {event}")
    if event == "open" and str(arguments[0]).startswith(os.environ["HOME"]):
        sys.exit(f"home: {arguments[0]}")

sys.addaudithook(watch)
from memory_service.embedding.local import LocalEmbedder

before = (list(logging.root.handlers), logging.root.level)
vectors = LocalEmbedder().embed(["alone"], timeout_s=10)
assert "wordllama" in sys.modules
assert (list(logging.root.handlers), logging.root.level) == before, logging.root.handlers
assert vectors.any()
"""


def test_it_touches_neither_network_nor_home_nor_the_log(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    root = Path(__file__).parents[2]

    run = subprocess.run(
        [sys.executable, "-c", LONELY], cwd=root, env=environment, capture_output=True, text=True, check=False
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
