"""The rule that blank text is not embedded."""

from collections.abc import Sequence

from memory_service.embedding.errors import TextNotEmbeddable

NOTHING_TO_EMBED = "has nothing to embed"


def is_blank(text: str) -> bool:
    """Returns whether a text is empty or nothing but white space.

    Models give such text a vector all the same, or refuse it in words of their own.
    """
    return not text or text.isspace()


def refuse_blank(texts: Sequence[str]) -> None:
    """Raises TextNotEmbeddable for the first text that is blank."""
    for index, text in enumerate(texts):
        if is_blank(text):
            raise TextNotEmbeddable(index, NOTHING_TO_EMBED)
