"""Completing memories to store: their texts embedded in one request, and ids given where callers gave none."""

from collections.abc import Sequence
from datetime import datetime

from db.cancellation import Call
from db.ids import uuid7_sequence
from db.memory import NewMemory
from db.vectors import Embedding
from memory_service import request_texts
from memory_service.messages.drafts import CALLER_MODEL, Draft
from memory_service.messages.fields import TextToEmbed
from memory_service.text_embeddings import TextEmbeddings


def complete(
    drafts: Sequence[Draft], embeddings: TextEmbeddings | None, call: Call, *, now: datetime, embed_async: bool = False
) -> list[NewMemory]:
    """Embeds what has to be embedded, in one request, and gives ids where the caller gave none.

    With `embed_async` nothing is embedded: memories that bring no embedding are to wait for it.

    Raises:
        InvalidArgument: When the model refuses a text.
    """
    texts = [draft.source for draft in drafts if isinstance(draft.source, TextToEmbed)]
    embedded = iter([None] * len(texts) if embed_async else request_texts.embed(texts, embeddings, call))
    model = model_of(embeddings)
    return [
        draft.complete(new_id=new_id, embedding=draft.source, model=CALLER_MODEL)
        if isinstance(draft.source, Embedding)
        else draft.complete(new_id=new_id, embedding=next(embedded), model=model)
        for draft, new_id in zip(drafts, uuid7_sequence(now, len(drafts)), strict=True)
    ]


def model_of(embeddings: TextEmbeddings | None) -> str:
    """Returns the model that embeds texts; where there is none, no text needs one."""
    return CALLER_MODEL if embeddings is None else embeddings.model
