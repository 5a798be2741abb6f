"""Storing and changing memories: InsertVector, BatchInsertVectors, UpdateVector, DeleteVector, RestoreVector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from db import delete, fetch, update
from db.cancellation import Call
from db.connection import Connection
from db.duplicates import Duplicates
from db.errors import MemoryNotFound
from db.memory import Metadata, View
from db.pool import Database
from db.update import UNCHANGED, Changes, Unchanged
from db.usage import Usage
from memory_service import completing, mutations, request_texts, storing
from memory_service.access.quotas import NO_QUOTAS, Quotas, Room
from memory_service.limits import Limits
from memory_service.messages import drafts, duplicates_request, replies, requests
from memory_service.messages.drafts import Draft
from memory_service.messages.fields import FieldReader, TextToEmbed
from memory_service.messages.metadata import encoded_size
from memory_service.messages.requests import UpdateDraft
from memory_service.messages.violations import InvalidArgument, Violation, Violations
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb


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
    wake_queue: Callable[[], object] = lambda: None
    """Called once memories that wait for their embedding are stored."""
    quotas: Quotas = NO_QUOTAS
    charge: Callable[[str], object] = lambda _text: None
    """Called with a stored text before it is embedded anew; raises LimitExceeded when that is too much."""

    def _fields(self) -> FieldReader:
        return FieldReader(self.limits, self.dimensions, self.embeddings is not None, Violations())

    def _purge_at(self, deleted_at: datetime) -> datetime:
        return deleted_at + self.limits.deleted_retention

    def insert(self, request: pb.InsertVectorRequest, call: Call) -> pb.InsertVectorResponse:
        """Stores one memory."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        draft = drafts.read_one(fields, "memory", request.memory, now=now)
        policy = duplicates_request.read(fields, request)
        embed_async = fields.embed_async(value=request.embed_async)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.InsertVectorResponse]:
            room = self._room(user_id, [draft], call, policy)
            [memory] = completing.complete([draft], self.embeddings, call, now=now, embed_async=embed_async)

            def store(conn: Connection) -> pb.InsertVectorResponse:
                with room.enforced(conn, now=now):
                    return storing.one(conn, user_id, memory, policy, now=now, purge_at=self._purge_at(now))

            return store

        reply = mutations.run(
            self.database, call, key, user_id=user_id, prepare=prepare, reply=pb.InsertVectorResponse, now=now
        )
        if embed_async:
            self.wake_queue()
        return reply

    def insert_batch(self, request: pb.BatchInsertVectorsRequest, call: Call) -> pb.BatchInsertVectorsResponse:
        """Stores all memories of a batch, or none."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        batch = drafts.read_batch(
            fields,
            request.memories,
            request_bytes=request.ByteSize(),
            max_count=self.limits.max_batch_size,
            now=now,
        )
        policy = duplicates_request.read(fields, request)
        embed_async = fields.embed_async(value=request.embed_async)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.BatchInsertVectorsResponse]:
            room = self._room(user_id, batch, call, policy)
            memories = completing.complete(batch, self.embeddings, call, now=now, embed_async=embed_async)

            def store(conn: Connection) -> pb.BatchInsertVectorsResponse:
                with room.enforced(conn, now=now):
                    return storing.batch(conn, user_id, memories, policy, now=now, purge_at=self._purge_at(now))

            return store

        reply = mutations.run(
            self.database, call, key, user_id=user_id, prepare=prepare, reply=pb.BatchInsertVectorsResponse, now=now
        )
        if embed_async:
            self.wake_queue()
        return reply

    def _room(self, user_id: str, memories: Sequence[Draft], call: Call, policy: Duplicates | None) -> Room:
        # A policy may leave memories out.
        adding = partial(drafts.usage_of, memories, self.dimensions)
        return self.quotas.expect(user_id, adding, call, certain=policy is None)

    def update(self, request: pb.UpdateVectorRequest, call: Call) -> pb.UpdateVectorResponse:
        """Changes the fields that the mask names."""
        now, fields = self.clock(), self._fields()
        user_id = fields.user_id(request.user_id)
        memory_id = fields.uuid("id", request.id)
        draft = requests.update_draft(fields, request)
        key = mutations.read_key(fields, request, now=now)
        fields.violations.raise_if_any()

        def prepare() -> Callable[[Connection], pb.UpdateVectorResponse]:
            # It may as well make the memory smaller.
            room = self.quotas.expect(user_id, lambda: Usage(bytes=request.ByteSize()), call, certain=False)
            changes = draft.changes
            if draft.content_changes or draft.embed_anew:
                stored = self.database.read(
                    call, lambda conn: fetch.fetch(conn, user_id, memory_id, view=View.BASIC), user_id=user_id
                )
                # Checked again in the transaction, where it counts; here it saves embedding in vain.
                fetch.require_etag(stored, request.etag)
                update.require_live(stored)
                changes = self._with_embedding(draft, stored.content or "", call)

            def change(conn: Connection) -> pb.UpdateVectorResponse:
                with room.enforced(conn, now=now):
                    after = update.update(
                        conn, user_id, memory_id, changes, etag=request.etag, now=now, check_metadata=self._check_merged
                    )
                return pb.UpdateVectorResponse(memory=replies.memory(after))

            return change

        return mutations.run(
            self.database, call, key, user_id=user_id, prepare=prepare, reply=pb.UpdateVectorResponse, now=now
        )

    def _with_embedding(self, draft: UpdateDraft, stored_content: str, call: Call) -> Changes:
        """Embeds the content there will be, or leaves content and embedding alone where it stays the same."""
        new_content = draft.changes.content
        if new_content == stored_content and not draft.embed_anew:
            return replace(draft.changes, content=UNCHANGED, expected_content=stored_content)
        if isinstance(new_content, Unchanged):
            self.charge(stored_content)
            source, expected_content = TextToEmbed(text=stored_content, path="memory.embedding"), stored_content
        else:
            source, expected_content = TextToEmbed(text=new_content, path="memory.content"), None
        [embedding] = request_texts.embed([source], self.embeddings, call)
        return replace(
            draft.changes,
            embedding=embedding,
            embedding_model=completing.model_of(self.embeddings),
            expected_content=expected_content,
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
        purge_at = self._purge_at(now)

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

        return mutations.run(
            self.database, call, key, user_id=user_id, prepare=lambda: change, reply=pb.DeleteVectorResponse, now=now
        )

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

        return mutations.run(
            self.database, call, key, user_id=user_id, prepare=lambda: change, reply=pb.RestoreVectorResponse, now=now
        )
