"""Reading whole requests: from contract messages to what the database layer takes."""

from dataclasses import dataclass
from typing import Any

from db.filters import Filter
from db.memory import View
from db.update import UNCHANGED, Changes
from memory_service.messages import conditions_request, update_mask
from memory_service.messages.drafts import CALLER_MODEL
from memory_service.messages.fields import DEFAULT_IMPORTANCE, FieldReader
from memory_service.messages.update_mask import UPDATABLE
from memory_service.v1 import memory_pb2 as pb

VIEWS = {
    pb.MEMORY_VIEW_UNSPECIFIED: View.BASIC,
    pb.MEMORY_VIEW_BASIC: View.BASIC,
    pb.MEMORY_VIEW_FULL: View.FULL,
    pb.MEMORY_VIEW_HEAD: View.HEAD,
}


ENCODINGS = {
    pb.VECTOR_ENCODING_FLOATS: pb.VECTOR_ENCODING_FLOATS,
    pb.VECTOR_ENCODING_F32_LE: pb.VECTOR_ENCODING_F32_LE,
    pb.VECTOR_ENCODING_F16_LE: pb.VECTOR_ENCODING_F16_LE,
}


def encoding(
    fields: FieldReader, value: pb.VectorEncoding.ValueType, *, default: pb.VectorEncoding.ValueType
) -> pb.VectorEncoding.ValueType:
    """Reads how embeddings of the reply are to be encoded."""
    if value == pb.VECTOR_ENCODING_UNSPECIFIED:
        return default
    return fields.choice("embedding_encoding", value, ENCODINGS)


def memory_filter(fields: FieldReader, message: pb.MemoryFilter, *, show_deleted: bool) -> Filter:
    """Reads which memories to consider."""
    return Filter(
        conversation_id=fields.conversation_id("filter.conversation_id", message.conversation_id),
        min_importance=_optional_importance(fields, message, "min_importance"),
        max_importance=_optional_importance(fields, message, "max_importance"),
        metadata_contains=fields.metadata("filter.metadata_contains", message.metadata_contains)
        if message.HasField("metadata_contains")
        else None,
        created_after=fields.time("filter.created_after", message.created_after)
        if message.HasField("created_after")
        else None,
        created_before=fields.time("filter.created_before", message.created_before)
        if message.HasField("created_before")
        else None,
        where=conditions_request.read(fields, message.where, "filter.where") if message.HasField("where") else None,
        show_deleted=show_deleted,
    )


def _optional_importance(fields: FieldReader, message: pb.MemoryFilter, name: str) -> int | None:
    if not message.HasField(name):  # type: ignore[arg-type]  # the stub wants a literal; both names are fields
        return None
    return fields.importance(f"filter.{name}", getattr(message, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDraft:
    """An update, before it is known whether a text has to be embedded."""

    changes: Changes
    content_changes: bool
    """Whether a new content came without an embedding: it is embedded if it differs from the stored one."""
    embed_anew: bool
    """Whether the stored or new content is to be embedded in any case."""


REPLACES_METADATA = {
    pb.METADATA_UPDATE_UNSPECIFIED: False,
    pb.METADATA_UPDATE_MERGE: False,
    pb.METADATA_UPDATE_REPLACE: True,
}


def update_draft(fields: FieldReader, request: pb.UpdateVectorRequest) -> UpdateDraft:
    """Reads an update: the fields its mask names, or those that are set where there is no mask (AIP-134)."""
    paths = _mask(fields, request)
    memory = request.memory
    replaces = (
        fields.choice("metadata_update", request.metadata_update, REPLACES_METADATA) or "*" in request.update_mask.paths
    )
    changes: dict[str, Any] = {}
    if "content" in paths:
        changes["content"] = fields.text("memory.content", memory.content, max_bytes=fields.limits.max_content_bytes)
    if "summary" in paths:
        changes["summary"] = fields.text("memory.summary", memory.summary, max_bytes=fields.limits.max_summary_bytes)
    if "metadata" in paths:
        changes["metadata"] = fields.metadata("memory.metadata", memory.metadata)
    if "importance" in paths:
        # 0 is what an unset number looks like: it stands for the default.
        importance = memory.importance or DEFAULT_IMPORTANCE
        changes["importance"] = fields.importance("memory.importance", importance)
    if "conversation_id" in paths:
        changes["conversation_id"] = fields.conversation_id("memory.conversation_id", memory.conversation_id)
    if "language" in paths:
        changes["language"] = fields.language("memory.language", memory.language)
    brings_embedding = update_mask.brings_embedding(request)
    if brings_embedding:
        changes["embedding"] = fields.embedding("memory.embedding", memory.embedding) or UNCHANGED
        changes["embedding_model"] = CALLER_MODEL
    content_changes = "content" in paths and not brings_embedding
    embed_anew = "embedding" in paths and not brings_embedding
    if content_changes:
        fields.embeddable("memory.content", memory.content)
    elif embed_anew and not fields.can_embed:
        fields.embeddable("memory.embedding", "")
    return UpdateDraft(
        changes=Changes(**changes, merge_metadata=not replaces), content_changes=content_changes, embed_anew=embed_anew
    )


def _mask(fields: FieldReader, request: pb.UpdateVectorRequest) -> set[str]:
    known = {descriptor.name for descriptor in pb.Memory.DESCRIPTOR.fields} | {"*"}
    for index, path in enumerate(request.update_mask.paths):
        if path not in known:
            expected = f"expected one of {', '.join(UPDATABLE)} or *"
            fields.violations.add(f"update_mask.paths[{index}]", f"names no field of a memory; {expected}")
    paths = update_mask.paths_of(request)
    if not paths:
        fields.violations.add("update_mask", f"names nothing to change; expected one of {', '.join(UPDATABLE)}")
    return paths
