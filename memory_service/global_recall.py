"""Finding memories across users: SearchAllUsers."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from db.cancellation import Call
from db.errors import ReplyTooLarge
from db.global_search import GlobalAnswer, NearestOfAll, search_all_users
from db.memory import View
from db.pool import Database
from db.search_plan import SearchTuning
from db.vectors import Embedding
from db.wall import ACROSS_USERS
from memory_service import request_texts
from memory_service.limits import Limits
from memory_service.messages import replies, requests, search_request
from memory_service.messages.fields import FieldReader, TextToEmbed
from memory_service.messages.violations import Violations
from memory_service.messages.wire_vectors import encoding_of
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb


class GlobalSearchDisabled(Exception):
    """This server does not search across users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalSearchDraft:
    """A search across users, before its query is an embedding. Exactly one of `embedding` and `text`."""

    embedding: Embedding | None
    text: str
    limit: int
    min_score: float | None
    view: View
    encoding: pb.VectorEncoding.ValueType
    ef_search: int | None

    def nearest(self, embedding: Embedding, *, max_text_bytes: int) -> NearestOfAll:
        """Returns the search for what is near `embedding`."""
        return NearestOfAll(
            embedding=embedding,
            limit=self.limit,
            min_score=self.min_score,
            view=self.view,
            max_text_bytes=max_text_bytes,
            ef_search=self.ef_search,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalRecall:
    """The RPC that reads what belongs to all users. Nothing it returns counts as accessed."""

    enabled: bool
    database: Database
    embeddings: TextEmbeddings | None
    """None where the server has no embedder."""
    tuning: Callable[[], SearchTuning]
    """Returns how far approximate plans look at the moment."""
    dimensions: int
    limits: Limits

    def search(self, request: pb.SearchAllUsersRequest, call: Call) -> pb.SearchAllUsersResponse:
        """Finds the memories nearest to an embedding or a text.

        Raises:
            GlobalSearchDisabled: Unless it is enabled, whatever the request.
        """
        if not self.enabled:
            raise GlobalSearchDisabled("this server was not started with MEMORY_GLOBAL_SEARCH=on")
        started_at = time.perf_counter()
        violations = Violations()
        draft = read(FieldReader(self.limits, self.dimensions, self.embeddings is not None, violations), request)
        violations.raise_if_any()

        embedding_at = time.perf_counter()
        embedding = draft.embedding or self._embedded(draft.text, call)
        embedding_s = time.perf_counter() - embedding_at if draft.text else 0.0
        nearest = draft.nearest(embedding, max_text_bytes=self.limits.max_reply_bytes)
        answer = self.database.read(
            call, lambda conn: search_all_users(conn, nearest, self.tuning()), user_id=ACROSS_USERS
        )
        reply = _reply(answer, draft.encoding)
        if (size := reply.ByteSize()) > self.limits.max_reply_bytes:
            raise ReplyTooLarge(count=len(answer.hits), size=size, allowed=self.limits.max_reply_bytes)
        replies.set_timing(
            reply.timing,
            total_s=time.perf_counter() - started_at,
            pool_wait_s=call.pool_wait_s,
            database_s=call.database_s,
            embedding_s=embedding_s,
        )
        return reply

    def _embedded(self, text: str, call: Call) -> Embedding:
        [embedding] = request_texts.embed([TextToEmbed(text=text, path="text")], self.embeddings, call)
        return embedding


def read(fields: FieldReader, request: pb.SearchAllUsersRequest) -> GlobalSearchDraft:
    """Reads the request, noting violations."""
    limits = fields.limits
    view = fields.choice("view", request.view, requests.VIEWS)
    encoding = requests.encoding(fields, request.embedding_encoding, default=encoding_of(request.embedding))
    limit = fields.size("limit", request.limit, default=limits.default_search_limit, maximum=limits.max_search_limit)
    if view is View.FULL:
        search_request.check_embeddings_fit(fields, limit, encoding)
    if math.isnan(request.min_score):
        fields.violations.add("min_score", "is NaN, expected a number")
    embedding, text = _query(fields, request)
    return GlobalSearchDraft(
        embedding=embedding,
        text=text,
        limit=limit,
        min_score=request.min_score if request.HasField("min_score") else None,
        view=view,
        encoding=encoding,
        ef_search=fields.integer("ef_search", request.ef_search, minimum=1, maximum=limits.max_ef_search)
        if request.HasField("ef_search")
        else None,
    )


def _query(fields: FieldReader, request: pb.SearchAllUsersRequest) -> tuple[Embedding | None, str]:
    if request.HasField("embedding") == bool(request.text):
        received = "both" if request.text else "neither"
        fields.violations.add("text", f"expected exactly one of embedding and text, received {received}")
        return None, ""
    if request.text:
        return None, fields.text_to_embed("text", request.text)
    return fields.embedding("embedding", request.embedding), ""


def _reply(answer: GlobalAnswer, encoding: pb.VectorEncoding.ValueType) -> pb.SearchAllUsersResponse:
    return pb.SearchAllUsersResponse(
        results=[pb.SearchResult(memory=replies.memory(hit.memory, encoding), score=hit.score) for hit in answer.hits],
        plan=replies.PLANS[answer.plan],
    )
