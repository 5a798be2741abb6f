"""Memories to store, as a request describes them: read with every fault named, their texts still to be embedded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from db.memory import NewMemory
from db.usage import BYTES_PER_DIMENSION, Usage
from db.vectors import Embedding
from memory_service.messages import wire_vectors
from memory_service.messages.fields import DEFAULT_IMPORTANCE, FieldReader, TextToEmbed
from memory_service.messages.metadata import encoded_size
from memory_service.messages.wire_vectors import VectorFault
from memory_service.v1 import memory_pb2 as pb

# The model recorded for embeddings that came with the call.
CALLER_MODEL = "caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A memory to store, before its text is embedded."""

    id: UUID | None
    conversation_id: str | None
    content: str
    summary: str
    metadata: dict[str, Any]
    source: Embedding | TextToEmbed
    importance: int
    created_at: datetime
    language: str

    def complete(self, *, new_id: UUID, embedding: Embedding | None, model: str) -> NewMemory:
        """Returns the memory with its embedding, or waiting for it; `new_id` serves where the caller gave none."""
        return NewMemory(
            id=self.id or new_id,
            conversation_id=self.conversation_id,
            content=self.content,
            summary=self.summary,
            metadata=self.metadata,
            embedding=embedding,
            embedding_model=model,
            importance=self.importance,
            created_at=self.created_at,
            embed_text=self._embed_text() if embedding is None else None,
            language=self.language,
        )

    def _embed_text(self) -> str | None:
        """Returns what is to be embedded where it is not the content."""
        return self.source.text if isinstance(self.source, TextToEmbed) and self.source.text != self.content else None


def read_one(fields: FieldReader, path: str, message: pb.NewMemory, *, now: datetime) -> Draft:
    """Reads the memory at `path`."""
    [draft] = _read(fields, [path], [message], now)
    return draft


def read_batch(
    fields: FieldReader, messages: Sequence[pb.NewMemory], *, request_bytes: int, max_count: int, now: datetime
) -> list[Draft]:
    """Reads the memories of a request of so many encoded bytes: 1 to `max_count`, no two with the same id.

    Raises:
        InvalidArgument: When there are too many, or too many bytes: then nothing more of them needs reading.
    """
    max_bytes = fields.limits.max_batch_bytes
    fields.integer("memories", len(messages), minimum=1, maximum=max_count)
    if request_bytes > max_bytes:
        description = f"make a request of {request_bytes} bytes, at most {max_bytes} are allowed; send several"
        fields.violations.add("memories", description)
    fields.violations.raise_if_any()
    drafts = _read(fields, [f"memories[{index}]" for index in range(len(messages))], messages, now)
    first: dict[UUID, int] = {}
    for index, draft in enumerate(drafts):
        if draft.id is not None and first.setdefault(draft.id, index) != index:
            fields.violations.add(f"memories[{index}].id", f"is the same as memories[{first[draft.id]}].id")
    return drafts


def _read(fields: FieldReader, paths: Iterable[str], messages: Sequence[pb.NewMemory], now: datetime) -> list[Draft]:
    sent = [message.embedding for message in messages if message.HasField("embedding")]
    vectors = iter(wire_vectors.read_all(sent, fields.dimensions))
    return [
        _draft(fields, path, message, next(vectors) if message.HasField("embedding") else None, now)
        for path, message in zip(paths, messages, strict=True)
    ]


def _draft(
    fields: FieldReader, path: str, message: pb.NewMemory, vector: Embedding | VectorFault | None, now: datetime
) -> Draft:
    return Draft(
        id=fields.optional_uuid(f"{path}.id", message.id),
        conversation_id=fields.conversation_id(f"{path}.conversation_id", message.conversation_id),
        content=fields.text(f"{path}.content", message.content, max_bytes=fields.limits.max_content_bytes),
        summary=fields.text(f"{path}.summary", message.summary, max_bytes=fields.limits.max_summary_bytes),
        metadata=fields.metadata(f"{path}.metadata", message.metadata) if message.HasField("metadata") else {},
        source=_source(fields, path, message, vector),
        importance=fields.importance(f"{path}.importance", message.importance)
        if message.HasField("importance")
        else DEFAULT_IMPORTANCE,
        created_at=_created_at(fields, f"{path}.created_at", message, now),
        language=fields.language(f"{path}.language", message.language),
    )


def _source(
    fields: FieldReader, path: str, message: pb.NewMemory, vector: Embedding | VectorFault | None
) -> Embedding | TextToEmbed:
    if vector is None:
        if message.embed_text:
            text = fields.text_to_embed(f"{path}.embed_text", message.embed_text)
            return TextToEmbed(text=text, path=f"{path}.embed_text")
        fields.embeddable(f"{path}.content", message.content)
        return TextToEmbed(text=message.content, path=f"{path}.content")
    if message.embed_text:
        fields.violations.add(f"{path}.embed_text", "is set together with embedding; send one of them")
    if isinstance(vector, Embedding):
        return vector
    vector.note(f"{path}.embedding", fields.violations)
    return TextToEmbed(text="", path=path)  # never used: a violation is noted


def _created_at(fields: FieldReader, path: str, message: pb.NewMemory, now: datetime) -> datetime:
    if not message.HasField("created_at"):
        return now
    created_at = fields.time(path, message.created_at)
    if created_at > now + fields.limits.max_created_at_lead:
        fields.violations.add(path, "lies more than a day in the future")
    return created_at


def usage_of(drafts: Sequence[Draft], dimensions: int) -> Usage:
    """Returns what these memories add to what their user has stored, but for a few bytes of metadata."""
    text_bytes = sum(
        len(draft.content.encode()) + len(draft.summary.encode()) + encoded_size(draft.metadata) for draft in drafts
    )
    return Usage(memories=len(drafts), bytes=text_bytes + len(drafts) * BYTES_PER_DIMENSION * dimensions)
