"""Storing and changing memories: InsertVector, BatchInsertVectors, UpdateVector, DeleteVector, RestoreVector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from db import delete, fetch, insert, update
from db.cancellation import Call
from db.connection import Connection
from db.errors import MemoryNotFound
from db.ids import uuid7_sequence
from db.memory import Metadata, NewMemory, View
from db.pool import Database
from db.update import UNCHANGED, Changes, Unchanged
from db.vectors import Embedding
from memory_service import mutations, replies, requests
from memory_service.embedding.errors import TextNotEmbeddable
from memory_service.fields import FieldReader
from memory_service.limits import Limits
from memory_service.metadata import encoded_size
from memory_service.requests import CALLER_MODEL, Draft, TextToEmbed, UpdateDraft
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb
from memory_service.violations import InvalidArgument, Violation, Violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The mutating RPCs over one database."""

    database: Database
    embeddings: TextEmbeddings | None
    """None where the server has no embedder."""
    dimensions: int
    limits: Limits
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""

    def _fields(self) -> FieldReader:
        return FieldReader(self.limits, self.dimensions, self.embeddings is not None, Violations())

    def insert(self, request: pb.InsertVectorRequest, call: Call) -> pb.InsertVectorResponse:
        """Stores one memory."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        draft = requests.draft(fields, "memory", request.memory, now=now)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.InsertVectorResponse]:
            [memory] = self._finish([draft], call, now)

            def store(conn: Connection) -> pb.InsertVectorResponse:
                insert.insert(conn, user_id, memory, now=now)
                return pb.InsertVectorResponse(memory=replies.inserted(user_id, memory, now=now))

            return store

        return mutations.run(self.database, call, key, prepare=prepare, reply=pb.InsertVectorResponse, now=now)

    def insert_batch(self, request: pb.BatchInsertVectorsRequest, call: Call) -> pb.BatchInsertVectorsResponse:
        """Stores all memories of a batch, or none."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        drafts = self._read_batch(fields, request, now)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.BatchInsertVectorsResponse]:
            memories = self._finish(drafts, call, now)

            def store(conn: Connection) -> pb.BatchInsertVectorsResponse:
                insert.insert_batch(conn, user_id, memories, now=now)
                results = [replies.insert_result(memory, now=now) for memory in memories]
                return pb.BatchInsertVectorsResponse(results=results)

            return store

        return mutations.run(self.database, call, key, prepare=prepare, reply=pb.BatchInsertVectorsResponse, now=now)

    def _read_batch(self, fields: FieldReader, request: pb.BatchInsertVectorsRequest, now: datetime) -> list[Draft]:
        count = len(request.memories)
        fields.integer("memories", count, minimum=1, maximum=self.limits.max_batch_size)
        if (size := request.ByteSize()) > self.limits.max_batch_bytes:
            allowed = f"at most {self.limits.max_batch_bytes} are allowed; send several batches"
            fields.violations.add("memories", f"make a request of {size} bytes, {allowed}")
        # Nothing of an oversized batch is stored, so nothing more of it needs reading.
        fields.violations.raise_if_any()
        drafts = [
            requests.draft(fields, f"memories[{index}]", message, now=now)
            for index, message in enumerate(request.memories)
        ]
        _refuse_repeated_ids(fields, drafts)
        return drafts

    def _finish(self, drafts: Sequence[Draft], call: Call, now: datetime) -> list[NewMemory]:
        """Embeds what has to be embedded, in one request, and gives ids where the caller gave none."""
        texts = [draft.source for draft in drafts if isinstance(draft.source, TextToEmbed)]
        embedded = iter(self._embed(texts, call))
        return [
            draft.finish(new_id=new_id, embedding=draft.source, model=CALLER_MODEL)
            if isinstance(draft.source, Embedding)
            else draft.finish(new_id=new_id, embedding=next(embedded), model=self._model())
            for draft, new_id in zip(drafts, uuid7_sequence(now, len(drafts)), strict=True)
        ]

    def _model(self) -> str:
        return CALLER_MODEL if self.embeddings is None else self.embeddings.model

    def _embed(self, texts: Sequence[TextToEmbed], call: Call) -> list[Embedding]:
        if self.embeddings is None or not texts:
            return []
        try:
            return self.embeddings.embed([text.text for text in texts], call)
        except TextNotEmbeddable as error:
            violation = Violation(texts[error.index].path, error.reason, pb.ERROR_REASON_TEXT_NOT_EMBEDDABLE)
            raise InvalidArgument([violation]) from error

    def update(self, request: pb.UpdateVectorRequest, call: Call) -> pb.UpdateVectorResponse:
        """Changes the fields that the mask names."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        memory_id = fields.uuid("id", request.id)
        draft = requests.update_draft(fields, request)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.UpdateVectorResponse]:
            changes = draft.changes
            if draft.content_changes or draft.embed_anew:
                stored = self.database.read(call, lambda conn: fetch.fetch(conn, user_id, memory_id, view=View.BASIC))
                changes = self._with_embedding(draft, stored.content or "", call)

            def change(conn: Connection) -> pb.UpdateVectorResponse:
                after = update.update(
                    conn, user_id, memory_id, changes, etag=request.etag, now=now, check_metadata=self._check_merged
                )
                return pb.UpdateVectorResponse(memory=replies.memory(after))

            return change

        return mutations.run(self.database, call, key, prepare=prepare, reply=pb.UpdateVectorResponse, now=now)

    def _with_embedding(self, draft: UpdateDraft, stored_content: str, call: Call) -> Changes:
        """Embeds the content there will be, or leaves content and embedding alone where it stays the same."""
        new_content = draft.changes.content
        if new_content == stored_content and not draft.embed_anew:
            return replace(draft.changes, content=UNCHANGED)
        if isinstance(new_content, Unchanged):
            source, embedded_content = TextToEmbed(text=stored_content, path="memory.embedding"), stored_content
        else:
            source, embedded_content = TextToEmbed(text=new_content, path="memory.content"), None
        [embedding] = self._embed([source], call)
        return replace(
            draft.changes, embedding=embedding, embedding_model=self._model(), embedded_content=embedded_content
        )

    def _check_merged(self, metadata: Metadata) -> None:
        """Refuses metadata that a merge has made too large; each part was within the limit."""
        size, allowed = encoded_size(metadata), self.limits.max_metadata_bytes
        if size > allowed:
            description = f"would have {size} bytes as JSON once merged, at most {allowed} are allowed"
            raise InvalidArgument([Violation("memory.metadata", description)])

    def delete(self, request: pb.DeleteVectorRequest, call: Call) -> pb.DeleteVectorResponse:
        """Deletes one memory, softly or for good."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        memory_id = fields.uuid("id", request.id)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()
        purge_at = now + self.limits.deleted_retention

        def change(conn: Connection) -> pb.DeleteVectorResponse:
            try:
                if request.hard:
                    gone = delete.hard_delete(conn, user_id, memory_id, etag=request.etag)
                else:
                    gone = delete.soft_delete(conn, user_id, memory_id, etag=request.etag, now=now, purge_at=purge_at)
            except MemoryNotFound:
                if request.allow_missing:
                    return pb.DeleteVectorResponse()
                raise
            return pb.DeleteVectorResponse(memory=replies.memory(gone))

        return mutations.run(self.database, call, key, prepare=lambda: change, reply=pb.DeleteVectorResponse, now=now)

    def restore(self, request: pb.RestoreVectorRequest, call: Call) -> pb.RestoreVectorResponse:
        """Brings a soft-deleted memory back."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        memory_id = fields.uuid("id", request.id)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def change(conn: Connection) -> pb.RestoreVectorResponse:
            restored = delete.restore(conn, user_id, memory_id, etag=request.etag, now=now)
            return pb.RestoreVectorResponse(memory=replies.memory(restored))

        return mutations.run(self.database, call, key, prepare=lambda: change, reply=pb.RestoreVectorResponse, now=now)


def _refuse_repeated_ids(fields: FieldReader, drafts: Sequence[Draft]) -> None:
    first: dict[UUID, int] = {}
    for index, draft in enumerate(drafts):
        if draft.id is not None and first.setdefault(draft.id, index) != index:
            fields.violations.add(f"memories[{index}].id", f"is the same as memories[{first[draft.id]}].id")
