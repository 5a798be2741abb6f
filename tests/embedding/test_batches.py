"""Tests of cutting sequences into batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.embedding.batches import batches


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([99], [1]),
        ([1, 1, 1, 1, 1, 1, 1], [3, 3, 1]),
        ([5, 5, 1], [2, 1]),
        ([1, 99, 1], [1, 1, 1]),
        ([0, 0, 10, 0], [3, 1]),
    ],
)
def test_batches_are_cut_by_number_and_by_size(sizes: list[int], expected: list[int]) -> None:
    cut = [batch.stop - batch.start for batch in batches(sizes, max_items=3, max_size=10)]

    assert cut == expected


@given(st.lists(st.integers(0, 50)), st.integers(1, 5), st.integers(0, 60))
def test_batches_cover_all_items_in_order_within_the_bounds(sizes: list[int], max_items: int, max_size: int) -> None:
    cut = [sizes[batch] for batch in batches(sizes, max_items=max_items, max_size=max_size)]

    assert [size for batch in cut for size in batch] == sizes
    assert all(1 <= len(batch) <= max_items for batch in cut)
    assert all(sum(batch) <= max_size or len(batch) == 1 for batch in cut)
