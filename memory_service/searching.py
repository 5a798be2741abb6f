"""Finding memories by meaning: SearchSimilar and BatchSearchSimilar."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from db import fetch
from db.access import AccessBuffer
from db.ann_registry import AnnRegistry
from db.cancellation import Call
from db.connection import Connection
from db.errors import MemoryDeleted, MemoryNotFound, ReplyTooLarge
from db.memory import View
from db.pool import Database
from db.search import Answer, Means, Nearest, search
from db.search_plan import SearchTuning, coarse_of
from db.user_sizes import UserSizes
from db.vectors import Embedding
from memory_service import replies, search_request
from memory_service.embedding.errors import TextNotEmbeddable
from memory_service.fields import FieldReader
from memory_service.limits import Limits
from memory_service.search_request import SearchDraft
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb
from memory_service.violations import InvalidArgument, Violation, Violations


class SearchObserver(Protocol):
    """Is told of every search, to measure it."""

    def __call__(self, user_id: str, nearest: Nearest, answer: Answer) -> None:
        """Takes note of a search and its answer; must not block."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What was looked for, what was found, and the seconds it took the database."""

    nearest: Nearest
    answer: Answer
    database_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Searching:
    """The searching RPCs over one database."""

    database: Database
    accesses: AccessBuffer
    embeddings: TextEmbeddings | None
    """None where the server has no embedder."""
    ann: AnnRegistry
    sizes: UserSizes
    tuning: Callable[[], SearchTuning]
    """Returns how far approximate plans look at the moment."""
    observe: SearchObserver
    dimensions: int
    limits: Limits
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""

    def _fields(self, violations: Violations) -> FieldReader:
        return FieldReader(self.limits, self.dimensions, self.embeddings is not None, violations)

    def search(self, request: pb.SearchSimilarRequest, call: Call) -> pb.SearchSimilarResponse:
        """Finds the memories nearest to an embedding, a text or a memory."""
        started_at = time.perf_counter()
        violations = Violations()
        draft = search_request.read(self._fields(violations), request)
        violations.raise_if_any()

        embeddings, embedding_s = self._embed([("text", draft.query.text)], call)
        found = self.database.read(call, lambda conn: self._find(conn, draft, embeddings))
        reply = replies.search(found.answer, draft.encoding)
        replies.set_timing(
            reply.timing,
            total_s=time.perf_counter() - started_at,
            pool_wait_s=call.pool_wait_s,
            database_s=call.database_s,
            embedding_s=embedding_s,
        )
        self._check_size(reply.ByteSize(), len(reply.results))
        self._note(draft, found)
        return reply

    def search_batch(self, request: pb.BatchSearchSimilarRequest, call: Call) -> pb.BatchSearchSimilarResponse:
        """Runs several searches of one user on one connection."""
        started_at = time.perf_counter()
        violations = Violations()
        drafts = self._read_batch(request, violations)
        violations.raise_if_any()

        texts = [(f"searches[{index}].text", draft.query.text) for index, draft in enumerate(drafts)]
        embeddings, embedding_s = self._embed(texts, call)
        found, responses = self.database.read(call, lambda conn: self._find_all(conn, drafts, embeddings))
        reply = pb.BatchSearchSimilarResponse(responses=responses)
        replies.set_timing(
            reply.timing,
            total_s=time.perf_counter() - started_at,
            pool_wait_s=call.pool_wait_s,
            database_s=call.database_s,
            embedding_s=embedding_s,
        )
        self._check_size(reply.ByteSize(), sum(len(response.results) for response in responses))
        for draft, one in zip(drafts, found, strict=True):
            self._note(draft, one)
        return reply

    def _read_batch(self, request: pb.BatchSearchSimilarRequest, violations: Violations) -> list[SearchDraft]:
        fields = self._fields(violations)
        user_id = fields.user_id(request.user_id)
        fields.integer("searches", len(request.searches), minimum=1, maximum=self.limits.max_batch_searches)
        violations.raise_if_any()
        drafts = []
        for index, message in enumerate(request.searches):
            inner = violations.below(f"searches[{index}].")
            if message.user_id not in ("", user_id):
                inner.add("user_id", "differs from the batch's user_id; leave it empty")
            message.user_id = user_id
            drafts.append(search_request.read(self._fields(inner), message))
        return drafts

    def _embed(self, texts: list[tuple[str, str]], call: Call) -> tuple[dict[str, Embedding], float]:
        """Embeds the texts that are not empty, given with their fields, in one request; returns also the seconds."""
        wanted = {text: path for path, text in reversed(texts) if text}
        if self.embeddings is None or not wanted:
            return {}, 0.0
        started_at, of_database_s = time.perf_counter(), call.pool_wait_s + call.database_s
        try:
            embeddings = self.embeddings.embed(list(wanted), call)
        except TextNotEmbeddable as error:
            path = list(wanted.values())[error.index]
            violation = Violation(path, error.reason, pb.ERROR_REASON_TEXT_NOT_EMBEDDABLE)
            raise InvalidArgument([violation]) from error
        # What the cache took counts as the database's time already.
        of_database_s = call.pool_wait_s + call.database_s - of_database_s
        embedding_s = time.perf_counter() - started_at - of_database_s
        return dict(zip(wanted, embeddings, strict=True)), embedding_s

    def _find_all(
        self, conn: Connection, drafts: list[SearchDraft], embeddings: dict[str, Embedding]
    ) -> tuple[list[_Found], list[pb.SearchSimilarResponse]]:
        """Runs the searches until their replies are too large together, which no server should have to hold."""
        found: list[_Found] = []
        responses: list[pb.SearchSimilarResponse] = []
        size = count = 0
        for index, draft in enumerate(drafts):
            started_at = time.perf_counter()
            try:
                one = self._find(conn, draft, embeddings)
            except (MemoryNotFound, MemoryDeleted) as error:
                raise type(error)(f"searches[{index}].memory_id: {error}") from error
            response = replies.search(one.answer, draft.encoding)
            replies.set_timing(
                response.timing,
                total_s=time.perf_counter() - started_at,
                pool_wait_s=0.0,
                database_s=one.database_s,
                embedding_s=0.0,
            )
            size, count = size + response.ByteSize(), count + len(response.results)
            self._check_size(size, count)
            found.append(one)
            responses.append(response)
        return found, responses

    def _find(self, conn: Connection, draft: SearchDraft, embeddings: dict[str, Embedding]) -> _Found:
        database_s = conn.database_s
        embedding = draft.query.embedding or embeddings.get(draft.query.text) or _origin(conn, draft)
        nearest = draft.nearest(embedding, max_text_bytes=self.limits.max_reply_bytes)
        answer = search(conn, draft.user_id, nearest, self._means(draft.user_id))
        return _Found(nearest, answer, conn.database_s - database_s)

    def _means(self, user_id: str) -> Means:
        return Means(
            coarse=coarse_of(self.dimensions),
            ann=self.ann.of(user_id),
            user_rows=self.sizes.rows(user_id),
            tuning=self.tuning(),
        )

    def _note(self, draft: SearchDraft, found: _Found) -> None:
        """Learns from a search that was answered, and counts its results as accessed."""
        self.observe(draft.user_id, found.nearest, found.answer)
        if not draft.filter.show_deleted:
            self.sizes.seen(draft.user_id, found.answer.considered)
        if draft.records_access:
            live = [hit.memory.id for hit in found.answer.hits if hit.memory.deleted_at is None]
            self.accesses.record(draft.user_id, live, at=self.clock())

    def _check_size(self, size: int, count: int) -> None:
        if size > self.limits.max_reply_bytes:
            raise ReplyTooLarge(count=count, size=size, allowed=self.limits.max_reply_bytes)


def _origin(conn: Connection, draft: SearchDraft) -> Embedding:
    """Returns the embedding of the memory that the search starts from."""
    if draft.query.memory_id is None:
        raise ValueError("a search without a query passed validation")
    memory = fetch.fetch(conn, draft.user_id, draft.query.memory_id, view=View.FULL)
    if memory.deleted_at is not None and not draft.filter.show_deleted:
        raise MemoryDeleted(f"memory {memory.id} is deleted; restore it first, or set show_deleted")
    if memory.embedding is None:
        raise ValueError("the full view lacks its embedding")
    return memory.embedding
