"""Finding the memories of one user nearest to a vector: runs the plan that fits, and widens it until it has enough."""

import math
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from db import search_statements
from db.ann_registry import AnnIndex
from db.ann_walk import depth
from db.connection import NO_SETTINGS, Connection, Statement
from db.errors import ReplyTooLarge
from db.filters import Filter
from db.memory import Memory, View, from_row
from db.search_plan import (
    FILTERED_PICKS,
    FILTERED_WALK,
    MAX_CANDIDATES,
    Coarse,
    Plan,
    SearchTuning,
    candidates_for,
    enough_for,
    picks_for,
    scan_is_cheaper,
)
from db.search_statements import Metric, Shape, shape_of
from db.vectors import Embedding, to_parameter
from db.wall import Settings


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory found; a larger score is nearer."""

    memory: Memory
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """What to look for: the `limit` memories nearest to `embedding` that pass the filter."""

    embedding: Embedding
    metric: Metric
    limit: int
    filter: Filter
    exclude: UUID | None = None
    min_score: float | None = None
    view: View = View.BASIC
    max_text_bytes: int | None = None
    exact: bool = False
    ef_search: int | None = None
    candidates: int | None = None


# An uncounted user is taken for one of this size: too many candidates cost little, too few cost recall.
_UNKNOWN_ROWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What there is to search with: the covering index, this user's approximate one, and how large the user is."""

    coarse: Coarse
    ann: AnnIndex | None
    user_rows: int | None
    """Live memories of the user, None while not counted."""
    tuning: SearchTuning

    @property
    def rows_or_guess(self) -> int:
        """How large to take the user for."""
        return _UNKNOWN_ROWS if self.user_rows is None else self.user_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found, and how."""

    hits: list[Hit]
    plan: Plan
    considered: int
    """How many memories that pass the filter were compared precisely, one by one."""
    maybe_incomplete: bool
    """Whether there are fewer than `limit` although the plan may have overlooked some."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What one statement found."""

    picked: int
    """How many candidates there were, one more than asked for at most."""
    compared: int
    hits: list[Hit]


_UNLIMITED = 2**62

# A generic plan takes the limit for a tenth of the table, which an index seems too slow for.
CUSTOM_PLAN = {"plan_cache_mode": "force_custom_plan"}


def search(conn: Connection, user_id: str, nearest: Nearest, means: Means) -> Answer:
    """Returns what is nearest, nearest first, equal distances by id.

    An approximate plan that finds fewer than `limit` is followed by one that looks further, and in the end by one
    that compares everything: a filter never hides memories that exist.

    Raises:
        ReplyTooLarge: When the results hold more than `max_text_bytes` of text.
    """
    run = _Run(conn, user_id, nearest)
    if means.ann is not None and _ann_serves(nearest):
        found = run.ann(means.ann, means.tuning)
        if found.compared >= nearest.limit:
            return _answer(found, nearest, Plan.ANN)
    if not _index_serves(nearest, means.coarse):
        return run.table()
    return run.candidates(means)


def _ann_serves(nearest: Nearest) -> bool:
    return nearest.metric is Metric.COSINE and not nearest.exact and not nearest.filter.show_deleted


def _index_serves(nearest: Nearest, coarse: Coarse) -> bool:
    if nearest.filter.show_deleted or coarse is Coarse.NOTHING:
        return False
    if coarse is Coarse.EMBEDDING:
        return not (nearest.exact and nearest.filter.reads_metadata)
    # Signs tell directions apart, not lengths.
    return nearest.metric is Metric.COSINE and not nearest.exact


def _answer(found: _Found, nearest: Nearest, plan: Plan) -> Answer:
    # Fewer than `limit` only where the others score too little; one that was overlooked might not.
    maybe_incomplete = plan is not Plan.EXACT and len(found.hits) < nearest.limit
    return Answer(hits=found.hits, plan=plan, considered=found.compared, maybe_incomplete=maybe_incomplete)


class _Run:
    """One search: its statements share a shape and parameters."""

    def __init__(self, conn: Connection, user_id: str, nearest: Nearest) -> None:
        self._conn = conn
        self._user_id = user_id
        self._nearest = nearest
        compiled = nearest.filter.compiled()
        self._shape: Shape = shape_of(nearest.metric, nearest.view, compiled, exclude=nearest.exclude is not None)
        limited = nearest.view is not View.HEAD and nearest.max_text_bytes is not None
        self._parameters: dict[str, Any] = compiled.parameters | {
            "user_id": user_id,
            "unit": to_parameter(nearest.embedding),
            "norm": nearest.embedding.norm,
            "exclude": nearest.exclude,
            "limit": nearest.limit,
            "min_score": -math.inf if nearest.min_score is None else nearest.min_score,
            "max_text_bytes": nearest.max_text_bytes if limited else _UNLIMITED,
        }

    def table(self) -> Answer:
        return _answer(self._query(search_statements.table(self._shape)), self._nearest, Plan.EXACT)

    def candidates(self, means: Means) -> Answer:
        """Picks candidates by the covering index, more where too few of them pass the filter."""
        statement = search_statements.candidates(self._shape, means.coarse)
        reads_metadata = self._nearest.filter.reads_metadata
        picks = self._first_picks(means)
        while not scan_is_cheaper(picks, means.user_rows, reads_metadata=reads_metadata):
            found = self._query(statement, candidates=picks)
            if found.picked <= picks:
                return _answer(found, self._nearest, Plan.EXACT)
            enough = self._enough(found, means)
            if found.compared >= enough:
                # The nearest by the embedding itself are the nearest; by signs only once all were compared.
                plan = Plan.EXACT if means.coarse is Coarse.EMBEDDING else Plan.QUANTIZED
                return _answer(found, self._nearest, plan)
            picks = picks_for(enough, picked=picks, passed=found.compared)
        return self.table()

    def _first_picks(self, means: Means) -> int:
        nearest, reads_metadata = self._nearest, self._nearest.filter.reads_metadata
        if means.coarse is Coarse.EMBEDDING:
            return 4 * nearest.limit + 100 if reads_metadata else nearest.limit
        if nearest.candidates is not None:
            return max(nearest.candidates, nearest.limit)
        picks = candidates_for(nearest.limit, means.rows_or_guess, means.tuning)
        return min(MAX_CANDIDATES, FILTERED_PICKS * picks) if reads_metadata else picks

    def _enough(self, found: _Found, means: Means) -> int:
        """Returns how many memories that pass the filter have to be compared."""
        nearest = self._nearest
        if means.coarse is Coarse.EMBEDDING:
            return nearest.limit
        if nearest.candidates is not None:
            return max(nearest.candidates, nearest.limit)
        passing = means.rows_or_guess * found.compared // found.picked
        return enough_for(nearest.limit, passing, means.tuning)

    def ann(self, index: AnnIndex, tuning: SearchTuning) -> _Found:
        """Walks the approximate index."""
        nearest = self._nearest
        walk = nearest.limit * FILTERED_WALK if nearest.filter.restricts else nearest.limit
        far_enough = depth(index, tuning, limit=nearest.limit, ef_search=nearest.ef_search)
        statement = search_statements.ann(self._shape, self._user_id)
        return self._query(statement, settings={**CUSTOM_PLAN, **far_enough}, walk=walk)

    def _query(self, statement: Statement, *, settings: Settings = NO_SETTINGS, **more: int) -> _Found:
        rows = self._conn.rows(statement, self._parameters | more, settings=settings)
        picked, compared, first_id, _, text_bytes, entry_id, *_ = rows[0]
        if first_id is None:
            return _Found(picked, compared, [])
        if entry_id is None:
            raise ReplyTooLarge(count=len(rows), size=text_bytes, allowed=self._parameters["max_text_bytes"])
        return _Found(picked, compared, [Hit(from_row(row[5:]), row[3]) for row in rows])
