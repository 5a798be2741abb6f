"""Reading memories back by id or by recency, and counting them: GetVector, GetRecent, GetStats."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from db import fetch, recent, stats
from db.access import AccessBuffer
from db.cancellation import Call
from db.connection import Connection
from db.memory import Memory, View
from db.pool import Database
from db.recent import Page, Position
from memory_service.limits import Limits
from memory_service.messages import page_token, replies, requests
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from memory_service.messages.wire_vectors import COMPONENT_BYTES
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The reading RPCs over one database."""

    database: Database
    accesses: AccessBuffer
    embeddings: TextEmbeddings | None
    """None where the server has no embedder."""
    dimensions: int
    limits: Limits
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""

    def _fields(self) -> FieldReader:
        return FieldReader(self.limits, self.dimensions, self.embeddings is not None, Violations())

    def get(self, request: pb.GetVectorRequest, call: Call) -> pb.GetVectorResponse:
        """Reads one memory, live or soft-deleted."""
        fields = self._fields()
        user_id = fields.user_id(request.user_id)
        memory_id = fields.uuid("id", request.id)
        view = fields.choice("view", request.view, requests.VIEWS)
        encoding = requests.encoding(fields, request.embedding_encoding, default=pb.VECTOR_ENCODING_FLOATS)
        fields.violations.raise_if_any()

        memory = self.database.read(
            call, lambda conn: fetch.fetch(conn, user_id, memory_id, view=view), user_id=user_id
        )
        if not request.skip_access_recording:
            self._record(user_id, [memory])
        return pb.GetVectorResponse(memory=replies.memory(memory, encoding))

    def _record(self, user_id: str, memories: list[Memory]) -> None:
        live = [memory.id for memory in memories if memory.deleted_at is None]
        self.accesses.record(user_id, live, at=self.clock())

    def recent(self, request: pb.GetRecentRequest, call: Call) -> pb.GetRecentResponse:
        """Lists memories, newest first, one page."""
        fields = self._fields()
        user_id = fields.user_id(request.user_id)
        view = fields.choice("view", request.view, requests.VIEWS)
        encoding = requests.encoding(fields, request.embedding_encoding, default=pb.VECTOR_ENCODING_FLOATS)
        page_size = self._page_size(fields, request.page_size, view, encoding)
        memory_filter = requests.memory_filter(fields, request.filter, show_deleted=request.show_deleted)
        fields.violations.raise_if_any()
        after = page_token.decode(request.page_token, request) if request.page_token else None

        def page(conn: Connection) -> Page:
            return recent.recent(
                conn,
                user_id,
                filter=memory_filter,
                after=after,
                page_size=page_size,
                view=view,
                max_text_bytes=self.limits.max_reply_bytes,
            )

        return self._recent_reply(self.database.read(call, page, user_id=user_id), request, encoding)

    def _page_size(self, fields: FieldReader, value: int, view: View, encoding: pb.VectorEncoding.ValueType) -> int:
        page_size = fields.page_size(value)
        if view is not View.FULL:
            return page_size
        embedding_bytes = self.dimensions * COMPONENT_BYTES[encoding]
        return max(1, min(page_size, self.limits.max_reply_bytes // (2 * embedding_bytes)))

    def _recent_reply(
        self, page: Page, request: pb.GetRecentRequest, encoding: pb.VectorEncoding.ValueType
    ) -> pb.GetRecentResponse:
        """Builds the reply, ending the page early where a further memory would make it too large."""
        reply, size, end = pb.GetRecentResponse(), 0, page.end
        for memory in page.memories:
            message = replies.memory(memory, encoding)
            size += message.ByteSize()
            if size > self.limits.max_reply_bytes and reply.memories:
                break
            reply.memories.append(message)
        if len(reply.memories) < len(page.memories):
            last = page.memories[len(reply.memories) - 1]
            end = Position(last.created_at, last.id)
        if end is not None:
            reply.next_page_token = page_token.encode(end, request)
        return reply

    def stats(self, request: pb.GetStatsRequest, call: Call) -> pb.GetStatsResponse:
        """Counts what the user has stored."""
        fields = self._fields()
        user_id = fields.user_id(request.user_id)
        conversation_limit = fields.size(
            "conversation_limit",
            request.conversation_limit,
            default=self.limits.default_conversation_limit,
            maximum=self.limits.max_conversation_limit,
        )
        fields.violations.raise_if_any()
        counted = self.database.read(
            call,
            lambda conn: stats.user_stats(
                conn, user_id, conversation_limit=conversation_limit, dimensions=self.dimensions
            ),
            user_id=user_id,
        )
        return replies.stats(counted)
