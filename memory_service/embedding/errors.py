"""The errors of embedding: what callers of an Embedder catch.

EmbeddingError
├── TextNotEmbeddable      one of the texts cannot be embedded, whoever asks again
├── EmbedderUnavailable    the embedder cannot answer at the moment
│   └── RequestGivenUp     nobody waited for its answer any more
└── EmbedderMisconfigured  the embedder refuses our requests, or its vectors are not what we need
"""


class EmbeddingError(Exception):
    """The root of this module's errors; its message is safe to show to a client."""


class TextNotEmbeddable(EmbeddingError):
    """One of the texts cannot be embedded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"text {index} {reason}")
        self.index = index
        """Which of the texts it was, counted from 0 in the caller's order."""
        self.reason = reason
        """Why, as the predicate of a sentence: "has nothing to embed"."""


class EmbedderUnavailable(EmbeddingError):
    """The embedder cannot answer at the moment."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """How long to wait before the next attempt: the provider's own wish where it gave one."""


class RequestGivenUp(EmbedderUnavailable):
    """Whoever waited for the answer left before it came, which says little of the embedder."""


class EmbedderMisconfigured(EmbeddingError):
    """The embedder refuses our requests, or its vectors are not what we need; only the operator can mend it."""
