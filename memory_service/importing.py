"""Bulk ingest, ImportVectors: each chunk of a stream is stored in a transaction of its own, exactly once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID, uuid5

from db import requests
from db.cancellation import Call
from db.connection import Connection
from db.duplicates import Duplicates
from db.errors import RequestIdReused
from db.pool import Database
from db.requests import RequestKey
from memory_service import chunk_receipts, completing, storing
from memory_service.access.quotas import NO_QUOTAS, Quotas
from memory_service.limits import Limits
from memory_service.messages import drafts, duplicates_request
from memory_service.messages.drafts import Draft
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb

MAX_CHUNK_NUMBER = 2**63 - 1


class ChunkFailed(Exception):
    """A chunk was not stored, for the reason that is its cause; those acknowledged before it were."""

    def __init__(self, chunk: int) -> None:
        super().__init__(f"chunk {chunk}")
        self.chunk = chunk
        """Its number, as the caller gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A chunk as far as it can be prepared without the database."""

    number: int
    import_id: UUID
    key: RequestKey
    """Its request id follows from the import's id and the chunk's number."""
    drafts: Sequence[Draft]
    duplicates: Duplicates | None
    embed_async: bool
    read_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Importing:
    """ImportVectors over one database, in two steps that different threads may take."""

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

    def read(self, requests: Iterable[pb.ImportVectorsRequest]) -> Iterator[Chunk]:
        """Reads chunk after chunk: checks it against the one before, and normalizes its embeddings.

        Raises:
            ChunkFailed: For the first chunk whose fields are wrong.
        """
        before = None
        for request in requests:
            try:
                before = self._read(request, before)
            except Exception as error:
                raise ChunkFailed(request.chunk) from error
            yield before

    def _read(self, request: pb.ImportVectorsRequest, before: Chunk | None) -> Chunk:
        now = self.clock()
        fields = FieldReader(self.limits, self.dimensions, self.embeddings is not None, Violations())
        user_id = fields.user_id(request.user_id)
        import_id = fields.uuid("import_id", request.import_id)
        number = fields.integer("chunk", request.chunk, minimum=0, maximum=MAX_CHUNK_NUMBER)
        duplicates = duplicates_request.read(fields, request)
        if before is not None:
            if user_id != before.key.user_id:
                fields.violations.add("user_id", "differs from that of the chunk before; open a stream for each user")
            if import_id != before.import_id:
                fields.violations.add("import_id", "differs from that of the chunk before")
            if duplicates != before.duplicates:
                fields.violations.add("duplicates", "differs from that of the chunk before")
            if number <= before.number:
                fields.violations.add("chunk", f"is {number} after {before.number}, expected ascending numbers")
        request.import_id = str(import_id)  # one spelling, whatever the caller's
        content = request.SerializeToString(deterministic=True)
        memories = drafts.read_batch(
            fields,
            request.memories,
            request_bytes=len(content),
            max_count=self.limits.max_import_chunk_size,
            now=now,
        )
        embed_async = fields.embed_async(value=request.embed_async)
        fields.violations.raise_if_any()
        key = RequestKey(
            user_id=user_id,
            request_id=uuid5(import_id, str(number)),
            request_hash=hashlib.sha256(content).digest(),
            expires_at=now + self.limits.request_id_retention,
        )
        return Chunk(
            number=number,
            import_id=import_id,
            key=key,
            drafts=memories,
            duplicates=duplicates,
            embed_async=embed_async,
            read_at=now,
        )

    def store(self, chunks: Iterable[Chunk], call: Call) -> Iterator[pb.ImportVectorsResponse]:
        """Stores chunk after chunk and yields the acknowledgement of each.

        Raises:
            ChunkFailed: For the first chunk that cannot be stored.
        """
        count = 0
        for chunk in chunks:
            try:
                reply = self._store(chunk, call)
            except RequestIdReused:
                raise ChunkFailed(chunk.number) from RequestIdReused("was stored before with other content")
            except Exception as error:
                raise ChunkFailed(chunk.number) from error
            count += len(reply.ids)
            reply.acknowledged_count = count
            yield reply

    def _store(self, chunk: Chunk, call: Call) -> pb.ImportVectorsResponse:
        now, user_id = chunk.read_at, chunk.key.user_id
        known = self._find(chunk, call)
        if known is not None:
            return _acknowledgement(chunk, known, already_stored=True)
        adding = partial(drafts.usage_of, chunk.drafts, self.dimensions)
        try:
            room = self.quotas.expect(user_id, adding, call, certain=chunk.duplicates is None)
            memories = completing.complete(chunk.drafts, self.embeddings, call, now=now, embed_async=chunk.embed_async)
        except Exception:
            # The same chunk may have come over another stream since we looked, and have used up the quota.
            if (known := self._find(chunk, call)) is None:
                raise
            return _acknowledgement(chunk, known, already_stored=True)
        purge_at = now + self.limits.deleted_retention
        mine: bytes | None = None

        def store(conn: Connection) -> bytes:
            nonlocal mine
            with room.enforced(conn, now=now):
                mine = storing.chunk(conn, user_id, memories, chunk.duplicates, now=now, purge_at=purge_at)
            return mine

        stored = self.database.write(
            call, lambda conn: requests.once(conn, chunk.key, partial(store, conn), now=now), user_id=user_id
        )
        if chunk.embed_async:
            self.wake_queue()
        # Meanwhile the same chunk may have come over another stream.
        return _acknowledgement(chunk, stored, already_stored=stored is not mine)

    def _find(self, chunk: Chunk, call: Call) -> bytes | None:
        return self.database.read(
            call, lambda conn: requests.find(conn, chunk.key, now=chunk.read_at), user_id=chunk.key.user_id
        )


def _acknowledgement(chunk: Chunk, receipts: bytes, *, already_stored: bool) -> pb.ImportVectorsResponse:
    return chunk_receipts.acknowledgement(
        receipts, chunk=chunk.number, count=len(chunk.drafts), already_stored=already_stored
    )
