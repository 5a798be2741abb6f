"""Tests of reading an embeddings endpoint's replies."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from memory_service.embedding.errors import EmbedderMisconfigured
from memory_service.embedding.openai_replies import read_vectors


def reply(*embeddings: Any, indexes: list[Any] | None = None) -> bytes:
    rows = [{"index": index, "embedding": row} for index, row in enumerate(embeddings)]
    for row, index in zip(rows, indexes or [], strict=False):
        row["index"] = index
    return json.dumps({"data": rows}).encode()


def test_floats_and_base64_are_read_alike() -> None:
    encoded = base64.b64encode(np.array([1.5, -2.0], "<f4").tobytes()).decode()

    vectors = read_vectors(reply([1.5, -2], encoded), count=2, dimensions=2)

    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1.5, -2.0], [1.5, -2.0]])


def test_rows_are_ordered_by_index() -> None:
    vectors = read_vectors(reply([1], [2], [3], indexes=[2, 0, 1]), count=3, dimensions=1)

    np.testing.assert_array_equal(vectors, [[2], [3], [1]])


def test_rows_without_index_keep_their_order() -> None:
    body = b'{"data": [{"embedding": [1]}, {"embedding": [2]}]}'

    np.testing.assert_array_equal(read_vectors(body, count=2, dimensions=1), [[1], [2]])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>gateway</html>",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": {"a": 1}}',
        b'{"data": [1]}',
        b'{"data": [{"index": 0}]}',
        b'{"data": [{"index": [], "embedding": [1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": "not base64!"}]}',
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}',  # three bytes are no floats
        b'{"data": [{"index": 0, "embedding": ["a", "b"]}]}',
        b'{"data": [{"index": 0, "embedding": [[1], [2, 3]]}]}',
        b'{"data": [{"index": 0, "embedding": [[1, 2]]}]}',
        b'{"data": [{"index": 0, "embedding": 1}]}',
        b'{"data": [{"index": 0, "embedding": [1' + b"0" * 400 + b", 2]}]}",
    ],
)
def test_what_is_no_list_of_embeddings_is_refused(body: bytes) -> None:
    with pytest.raises(EmbedderMisconfigured, match="not a list of embeddings"):
        read_vectors(body, count=1, dimensions=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (reply([1, 2]), "sent 1 embeddings for 2 texts"),
        (reply([1, 2], [1, 2], [1, 2]), "sent 3 embeddings for 2 texts"),
        (reply([1, 2], [1, 2], indexes=[0, 0]), "indexes are not 0 to 1, once each"),
        (reply([1, 2], [1, 2], indexes=[1, 2]), "indexes are not 0 to 1, once each"),
        (reply([1, 2], [1, 2, 3]), "sent 3 dimensions where 2 are configured"),
        (reply([1, 2], []), "sent 0 dimensions where 2 are configured"),
        (reply([1, 2], [1, float("nan")]), "sent NaN or infinity"),
        (reply([1, 2], [float("-inf"), 1]), "sent NaN or infinity"),
        (reply([1, 2], [1, 1e39]), "sent NaN or infinity"),  # beyond float32
        (reply([1, 2], [1, None]), "sent NaN or infinity"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(EmbedderMisconfigured, match=message):
        read_vectors(body, count=2, dimensions=2)
