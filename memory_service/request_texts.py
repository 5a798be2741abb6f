"""Embedding the texts of a request: one that the model refuses is a fault of the field it came from."""

from collections.abc import Sequence

from db.cancellation import Call
from db.vectors import Embedding
from memory_service.embedding.errors import TextNotEmbeddable
from memory_service.messages.fields import TextToEmbed
from memory_service.messages.violations import InvalidArgument, Violation
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb


def embed(texts: Sequence[TextToEmbed], embeddings: TextEmbeddings | None, call: Call) -> list[Embedding]:
    """Returns the embedding of each text; without an embedder there are no texts, as reading them has shown.

    Raises:
        InvalidArgument: When the model refuses a text.
    """
    if embeddings is None or not texts:
        return []
    try:
        return embeddings.embed([text.text for text in texts], call)
    except TextNotEmbeddable as error:
        violation = Violation(texts[error.index].path, error.reason, pb.ERROR_REASON_TEXT_NOT_EMBEDDABLE)
        raise InvalidArgument([violation]) from error
