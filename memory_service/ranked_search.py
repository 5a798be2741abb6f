"""Searches that weigh more than one thing: candidates by meaning and by words, ranked, and the best of them read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from db import fetch
from db.connection import Connection
from db.lexical import LexicalAnswer, score_words, search_words
from db.memory import View
from db.search import Answer, Means, Nearest, search
from db.search_plan import Plan, candidates_for
from db.vectors import Embedding
from memory_service.candidate_pool import CandidatePool
from memory_service.messages.search_request import SearchDraft
from memory_service.ranking.options import RankingOptions
from memory_service.ranking.rank import Ranked, rank
from memory_service.search_outcome import Outcome, Result

# How many candidates each side brings. As each is judged by both sides, few suffice: with 40 or 200 of them Cranfield's
# NDCG@10 is the same to four digits. Boosts, conversations and diversity choose among more.
MIN_CANDIDATES, MIN_CANDIDATES_TO_CHOOSE_FROM, MAX_CANDIDATES = 50, 100, 1_000
CANDIDATES_PER_RESULT = 4


def candidates_of_a_side(draft: SearchDraft) -> int:
    """Returns how many candidates each side of a search brings."""
    least = MIN_CANDIDATES if draft.ranking.is_neutral else MIN_CANDIDATES_TO_CHOOSE_FROM
    return min(MAX_CANDIDATES, max(least, CANDIDATES_PER_RESULT * draft.limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedSearch:
    """One search on one connection. A memory that vanishes between two of its statements makes room for another."""

    conn: Connection
    draft: SearchDraft
    embedding: Embedding | None
    """None in mode LEXICAL."""
    means: Means
    now: datetime
    """The time of the call."""
    max_text_bytes: int

    def run(self) -> Outcome:
        """Finds, ranks and reads.

        Raises:
            ReplyTooLarge: When the results hold more than `max_text_bytes` of text.
        """
        draft, pool = self.draft, CandidatePool(self.conn, self.draft, self.embedding)
        nearest = None if self.embedding is None else self._nearest(self.embedding)
        dense = None if nearest is None else search(self.conn, draft.user_id, nearest, self.means)
        if dense is not None:
            pool.add_near(dense.hits)
        lexical = None if draft.words is None else self._by_words(also=list(pool.features))
        if lexical is not None:
            pool.add_worded(lexical.scores, limit=candidates_of_a_side(draft))
        if not draft.ranking.conversation.neutral:
            pool.add_neighbours(None if lexical is None else partial(score_words, self.conn, lexical))
        options = self._options()
        results = self._results(pool, options)
        overlooked = (dense is not None and dense.maybe_incomplete) or (
            lexical is not None and lexical.maybe_incomplete
        )
        return Outcome(
            results=results,
            mode=draft.mode,
            plan=Plan.LEXICAL if dense is None else dense.plan,
            considered=max(len(pool.features), 0 if dense is None else dense.considered),
            maybe_incomplete=overlooked and len(results) < draft.limit,
            formula=options.formula,
            terms=[] if lexical is None else lexical.terms,
            dense=None if nearest is None or dense is None else self._measurable(nearest, dense),
        )

    def _nearest(self, embedding: Embedding) -> Nearest:
        limit = candidates_of_a_side(self.draft)
        return replace(
            self.draft.nearest(embedding, max_text_bytes=self.max_text_bytes),
            limit=limit,
            min_score=None,
            view=View.HEAD,
            candidates=max(limit, self.draft.candidates or self._depth()),
        )

    def _depth(self) -> int:
        """Returns how many memories a quantized search compares precisely: what DENSE does for so many results.

        That finds the nearest of them as surely, though not all that are candidates: these would take as many look-ups
        as there are candidates more than results. Behind a filter on metadata DENSE compares fewer than a side's
        candidates.
        """
        if self.draft.filter.reads_metadata:
            return 0
        return candidates_for(self.draft.limit, self.means.rows_or_guess, self.means.tuning)

    def _measurable(self, nearest: Nearest, answer: Answer) -> tuple[Nearest, Answer] | None:
        """Returns the search and its answer as DENSE would have them; None where it would look less far."""
        if answer.plan is not Plan.QUANTIZED or self._depth() < nearest.limit:
            return None
        as_dense = replace(nearest, limit=self.draft.limit, candidates=self.draft.candidates)
        return as_dense, replace(answer, hits=answer.hits[: self.draft.limit])

    def _by_words(self, *, also: Sequence[UUID]) -> LexicalAnswer:
        if self.draft.words is None:
            raise ValueError("a search without words")
        return search_words(
            self.conn,
            self.draft.user_id,
            self.draft.words,
            filter=self.draft.filter,
            exclude=self.draft.query.memory_id,
            limit=candidates_of_a_side(self.draft),
            also=also,
            user_rows=self.means.user_rows,
        )

    def _options(self) -> RankingOptions:
        ranking = self.draft.ranking
        return RankingOptions(
            mode=self.draft.mode,
            fusion=ranking.fusion,
            boosts=ranking.boosts,
            conversation=ranking.conversation,
            diversity=ranking.diversity,
            as_of=ranking.as_of or self.now,
            limit=self.draft.limit,
            min_score=self.draft.min_score,
        )

    def _results(self, pool: CandidatePool, options: RankingOptions) -> list[Result]:
        """Ranks and reads; once more where what was chosen has vanished, with whatever was collapsed into it."""
        chosen = rank(pool.candidates(), options)
        results = self._read(chosen)
        if len(results) == len(chosen):
            return results
        pool.forget({one.candidate.id for one in chosen} - {result.memory.id for result in results})
        return self._read(rank(pool.candidates(), options))

    def _read(self, ranked: Sequence[Ranked]) -> list[Result]:
        memories = fetch.fetch_chosen(
            self.conn,
            self.draft.user_id,
            [one.candidate.id for one in ranked],
            filter=self.draft.filter,
            view=self.draft.view,
            max_text_bytes=self.max_text_bytes,
        )
        return [
            Result(memory=memories[one.candidate.id], score=one.score, ranked=one)
            for one in ranked
            if one.candidate.id in memories
        ]
