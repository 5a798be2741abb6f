"""The signs of an embedding's components, one bit each, which writers store beside it where searches pick by them.

`bits` was once computed by the database. A computed column cannot be added later without writing the whole table anew,
which a move to a model of more dimensions would need; so every statement that stores an embedding stores its bits.
"""

from collections.abc import Sequence

from db.search_plan import Coarse, coarse_of
from db.vectors import Embedding


def kept_for(dimensions: int) -> bool:
    """Tells whether rows with embeddings of so many dimensions have `bits`."""
    return coarse_of(dimensions) is Coarse.SIGNS


def kept_beside(embeddings: Sequence[Embedding]) -> bool:
    """Tells whether these embeddings, all of the same dimensions, are stored with their bits."""
    return bool(embeddings) and kept_for(len(embeddings[0].unit))
