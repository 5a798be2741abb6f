"""Reading what a search looks for, and whether it goes by meaning, by words or by both."""

from dataclasses import dataclass
from uuid import UUID

from db.vectors import Embedding
from memory_service.messages.fields import FieldReader
from memory_service.ranking.options import Mode
from memory_service.v1 import memory_pb2 as pb

MODES = {
    pb.SEARCH_MODE_UNSPECIFIED: None,
    pb.SEARCH_MODE_DENSE: Mode.DENSE,
    pb.SEARCH_MODE_LEXICAL: Mode.LEXICAL,
    pb.SEARCH_MODE_HYBRID: Mode.HYBRID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for: an embedding, a text, both of them, or what is like a memory."""

    embedding: Embedding | None = None
    text: str = ""
    memory_id: UUID | None = None


def read(fields: FieldReader, request: pb.SearchSimilarRequest) -> tuple[Query, Mode]:
    """Reads the query and the mode, which follows from the query where the request names none."""
    given = [
        name
        for name, is_set in (
            ("embedding", request.HasField("embedding")),
            ("text", bool(request.text)),
            ("memory_id", bool(request.memory_id)),
        )
        if is_set
    ]
    mode = fields.choice("mode", request.mode, MODES) or _mode_for(given, fields)
    if (fault := _fault(given, mode)) is not None:
        fields.violations.add(*fault)
        return Query(), mode
    return (
        Query(
            embedding=fields.embedding("embedding", request.embedding) if "embedding" in given else None,
            text=_text(fields, request.text, embeds=mode is not Mode.LEXICAL and "embedding" not in given)
            if "text" in given
            else "",
            memory_id=fields.uuid("memory_id", request.memory_id) if "memory_id" in given else None,
        ),
        mode,
    )


def _mode_for(given: list[str], fields: FieldReader) -> Mode:
    if "text" not in given or "memory_id" in given:
        return Mode.DENSE
    return Mode.HYBRID if fields.can_embed or "embedding" in given else Mode.LEXICAL


def _fault(given: list[str], mode: Mode) -> tuple[str, str] | None:
    """Returns the field that does not fit the mode, and what is wrong with it."""
    if mode is Mode.DENSE or not given:
        received = " and ".join(given) or "none of them"
        wrong = given[-1] if given else "text"
        expected = "expected exactly one of embedding, text and memory_id"
        return None if len(given) == 1 else (wrong, f"{expected}, received {received}")
    if "text" not in given:
        return "text", f"is required in mode {mode.name}"
    if "memory_id" in given:
        return "memory_id", f"is not for mode {mode.name}; leave it out, or choose mode DENSE and leave the text out"
    if mode is Mode.LEXICAL and "embedding" in given:
        return "embedding", "is not for mode LEXICAL, which goes by words alone; leave it out, or choose mode HYBRID"
    return None


def _text(fields: FieldReader, value: str, *, embeds: bool) -> str:
    if embeds:
        return fields.text_to_embed("text", value)
    if not value.strip():
        fields.violations.add("text", "has nothing to look for: it is blank")
    return fields.text("text", value, max_bytes=fields.limits.max_content_bytes)
