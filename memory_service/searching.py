"""Finding memories: SearchSimilar and BatchSearchSimilar."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from db import fetch, surroundings
from db.access import AccessBuffer
from db.ann_registry import AnnRegistry
from db.cancellation import Call
from db.connection import Connection
from db.errors import EmbeddingPending, MemoryDeleted, MemoryNotFound, ReplyTooLarge
from db.memory import EmbeddingState, View
from db.pool import Database
from db.search import Means, search
from db.search_plan import SearchTuning, coarse_of
from db.user_sizes import UserSizes
from db.vectors import Embedding
from memory_service import request_texts, search_outcome
from memory_service.limits import Limits
from memory_service.messages import replies, search_request
from memory_service.messages.fields import FieldReader, TextToEmbed
from memory_service.messages.ranking_request import RankingDefaults
from memory_service.messages.search_request import SearchDraft
from memory_service.messages.violations import Violations
from memory_service.ranked_search import RankedSearch
from memory_service.ranking.options import Mode
from memory_service.search_outcome import Outcome
from memory_service.text_embeddings import TextEmbeddings
from memory_service.v1 import memory_pb2 as pb


class SearchObserver(Protocol):
    """Is told of every search, to measure it."""

    def __call__(self, user_id: str, outcome: Outcome) -> None:
        """Takes note of what a search has found; must not block."""


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
    ranking: RankingDefaults
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
        draft = search_request.read(self._fields(violations), request, self.ranking)
        violations.raise_if_any()

        now = self.clock()
        embeddings, embedding_s = self._embed([TextToEmbed(text=draft.text_to_embed, path="text")], call)
        outcome = self.database.read(call, lambda conn: self._find(conn, draft, embeddings, now), user_id=draft.user_id)
        reply = replies.search(outcome, draft.encoding, explain=draft.explain)
        replies.set_timing(
            reply.timing,
            total_s=time.perf_counter() - started_at,
            pool_wait_s=call.pool_wait_s,
            database_s=call.database_s,
            embedding_s=embedding_s,
        )
        self._check_size(reply.ByteSize(), len(reply.results))
        self._note(draft, outcome)
        return reply

    def search_batch(self, request: pb.BatchSearchSimilarRequest, call: Call) -> pb.BatchSearchSimilarResponse:
        """Runs several searches of one user on one connection."""
        started_at = time.perf_counter()
        violations = Violations()
        drafts = self._read_batch(request, violations)
        violations.raise_if_any()

        now = self.clock()
        texts = [
            TextToEmbed(text=draft.text_to_embed, path=f"searches[{index}].text") for index, draft in enumerate(drafts)
        ]
        embeddings, embedding_s = self._embed(texts, call)
        outcomes, responses = self.database.read(
            call, lambda conn: self._find_all(conn, drafts, embeddings, now), user_id=request.user_id
        )
        reply = pb.BatchSearchSimilarResponse(responses=responses)
        replies.set_timing(
            reply.timing,
            total_s=time.perf_counter() - started_at,
            pool_wait_s=call.pool_wait_s,
            database_s=call.database_s,
            embedding_s=embedding_s,
        )
        self._check_size(reply.ByteSize(), sum(len(response.results) for response in responses))
        for draft, outcome in zip(drafts, outcomes, strict=True):
            self._note(draft, outcome)
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
            drafts.append(search_request.read(self._fields(inner), message, self.ranking))
        return drafts

    def _embed(self, texts: list[TextToEmbed], call: Call) -> tuple[dict[str, Embedding], float]:
        """Embeds the texts that are not empty, in one request; returns also the seconds."""
        wanted = {text.text: text for text in reversed(texts) if text.text}  # of equal ones the first is blamed
        if self.embeddings is None or not wanted:
            return {}, 0.0
        started_at, of_database_s = time.perf_counter(), call.pool_wait_s + call.database_s
        embeddings = request_texts.embed(list(wanted.values()), self.embeddings, call)
        # What the cache took counts as the database's time already.
        of_database_s = call.pool_wait_s + call.database_s - of_database_s
        embedding_s = time.perf_counter() - started_at - of_database_s
        return dict(zip(wanted, embeddings, strict=True)), embedding_s

    def _find_all(
        self, conn: Connection, drafts: list[SearchDraft], embeddings: dict[str, Embedding], now: datetime
    ) -> tuple[list[Outcome], list[pb.SearchSimilarResponse]]:
        """Runs the searches until their replies are too large together, which no server should have to hold."""
        outcomes: list[Outcome] = []
        responses: list[pb.SearchSimilarResponse] = []
        size = count = 0
        for index, draft in enumerate(drafts):
            started_at, database_s = time.perf_counter(), conn.database_s
            try:
                outcome = self._find(conn, draft, embeddings, now)
            except (MemoryNotFound, MemoryDeleted, EmbeddingPending) as error:
                raise type(error)(f"searches[{index}].memory_id: {error}") from error
            response = replies.search(outcome, draft.encoding, explain=draft.explain)
            replies.set_timing(
                response.timing,
                total_s=time.perf_counter() - started_at,
                pool_wait_s=0.0,
                database_s=conn.database_s - database_s,
                embedding_s=0.0,
            )
            size, count = size + response.ByteSize(), count + len(response.results)
            self._check_size(size, count)
            outcomes.append(outcome)
            responses.append(response)
        return outcomes, responses

    def _find(self, conn: Connection, draft: SearchDraft, embeddings: dict[str, Embedding], now: datetime) -> Outcome:
        embedding = None
        if draft.mode is not Mode.LEXICAL:
            embedding = draft.query.embedding or embeddings.get(draft.query.text) or _origin(conn, draft)
        means, max_text_bytes = self._means(draft.user_id), self.limits.max_reply_bytes
        if embedding is not None and draft.is_plain:
            nearest = draft.nearest(embedding, max_text_bytes=max_text_bytes)
            outcome = search_outcome.of_nearest(nearest, search(conn, draft.user_id, nearest, means))
        else:
            outcome = RankedSearch(
                conn=conn, draft=draft, embedding=embedding, means=means, now=now, max_text_bytes=max_text_bytes
            ).run()
        return self._with_context(conn, draft, outcome) if draft.ranking.context else outcome

    def _with_context(self, conn: Connection, draft: SearchDraft, outcome: Outcome) -> Outcome:
        """Adds what stands around each result in its conversation."""
        found = surroundings.around(
            conn,
            draft.user_id,
            [result.memory.id for result in outcome.results],
            reach=draft.ranking.context,
            view=draft.view,
            max_text_bytes=self.limits.max_reply_bytes,
        )
        results = [replace(result, surroundings=found[result.memory.id]) for result in outcome.results]
        return replace(outcome, results=results)

    def _means(self, user_id: str) -> Means:
        return Means(
            coarse=coarse_of(self.dimensions),
            ann=self.ann.of(user_id),
            user_rows=self.sizes.rows(user_id),
            tuning=self.tuning(),
        )

    def _note(self, draft: SearchDraft, outcome: Outcome) -> None:
        """Learns from a search that was answered, and counts its results as accessed."""
        self.observe(draft.user_id, outcome)
        if not draft.filter.show_deleted:
            self.sizes.seen(draft.user_id, outcome.considered)
        if draft.records_access:
            live = [result.memory.id for result in outcome.results if result.memory.deleted_at is None]
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
        if memory.embedding_state is EmbeddingState.FAILED:
            raise EmbeddingPending(f"memory {memory.id} could not be embedded; update its content or embedding first")
        raise EmbeddingPending(f"memory {memory.id} waits for its embedding; try again later, or search for its text")
    return memory.embedding
