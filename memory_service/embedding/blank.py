"""The rule that blank text is not embedded."""

from collections.abc import Sequence

from memory_service.embedding.errors import TextNotEmbeddable


def refuse_blank(texts: Sequence[str]) -> None:
    """Raises TextNotEmbeddable for the first text that is empty or nothing but white space.

    Models give such text a vector all the same, or refuse it in words of their own.
    """
    for index, text in enumerate(texts):
        if not text or text.isspace():
            raise TextNotEmbeddable(index, "has nothing to embed")
