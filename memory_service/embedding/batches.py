"""Cutting a sequence into batches of bounded number and size."""

from collections.abc import Iterator, Sequence

# OpenAI takes 300,000 tokens in a request. No token is shorter than a byte, so as many bytes always fit.
REQUEST_BYTES = 300_000


def batches(sizes: Sequence[int], *, max_items: int, max_size: int) -> Iterator[slice]:
    """Yields consecutive slices that cover items of the given `sizes` in order.

    Each holds at most `max_items` items, and no more than `max_size` in all unless it is a single item larger
    than that.
    """
    first, total = 0, 0
    for index, size in enumerate(sizes):
        if index > first and (index - first == max_items or total + size > max_size):
            yield slice(first, index)
            first, total = index, 0
        total += size
    if sizes:
        yield slice(first, len(sizes))
