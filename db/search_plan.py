"""Choosing how to search: the one place that knows which plan serves which size of user, and how far it looks.

docs/adr/0010-search-plans-by-size.md has the measurements behind the numbers.
"""

import math
from dataclasses import dataclass
from enum import Enum


class Plan(Enum):
    """How an answer is found."""

    EXACT = "exact"
    """Every memory that passes the filter is compared precisely."""
    QUANTIZED = "quantized"
    """Every memory is compared by the signs of its components, the nearest of them precisely."""
    ANN = "ann"
    """The user's own approximate index is walked."""
    LEXICAL = "lexical"
    """No embeddings are compared: the index of words is read."""


class Coarse(Enum):
    """What the covering index holds to pick candidates by."""

    EMBEDDING = "embedding"
    """The embedding itself: candidates picked by it are the nearest."""
    SIGNS = "signs"
    """One bit a component."""
    NOTHING = "nothing"
    """There is no covering index: more dimensions than its entries have room for."""


SIGNS_FROM_DIMENSIONS = 768
MAX_INDEXED_DIMENSIONS = 12_000
"""As in migration 0003."""


def coarse_of(dimensions: int) -> Coarse:
    """Returns what the covering index holds for embeddings of so many dimensions."""
    if dimensions < SIGNS_FROM_DIMENSIONS:
        return Coarse.EMBEDDING
    return Coarse.SIGNS if dimensions <= MAX_INDEXED_DIMENSIONS else Coarse.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTuning:
    """How far approximate plans look. `widening` doubles where the recall probe finds too little."""

    ef_search: int = 64
    candidates_factor: int = 20
    widening: int = 1

    def ef(self, limit: int) -> int:
        """Returns hnsw.ef_search for `limit` results: pgvector's bound is 1,000."""
        return min(1_000, max(self.ef_search * self.widening, limit * 2))

    def probes(self, lists: int, ef_search: int | None) -> int:
        """Returns ivfflat.probes for an index of so many lists: ef_search of every IVFFLAT_LISTS."""
        share = (ef_search or self.ef_search * self.widening) / IVFFLAT_LISTS
        return min(lists, max(1, math.ceil(lists * share)))


# Embeddings of real sentences lie near the borders of lists: the nearest 10 % of 100 lists held 0.88 of the top 10 of
# 100,000, 20 % held 0.93, 33 % 0.96 and 50 % 0.98. At the default ef_search 40 % are read.
IVFFLAT_LISTS = 160
# An index hands over what passes a filter in batches, nearest first only within a batch: the nearest of this many
# times as many are taken.
FILTERED_WALK = 4

TINY_ROWS = 100
SMALL_ROWS = 1_000
MEDIUM_ROWS = 10_000
TINY_CANDIDATES = 40
MIN_CANDIDATES = 64
MAX_CANDIDATES = 10_000


def candidates_for(limit: int, rows: int, tuning: SearchTuning) -> int:
    """Returns how many candidates by signs, of `rows` memories that compete, to compare precisely for `limit` results.

    A wanted memory's rank by signs grows with the number of memories that compete: 20·k found 0.997 of the top 10
    of 10,000 real embeddings of 1,536 dimensions and 1.0 with 40·k; for 250 memories 4·k found 0.9995 there, and 0.992
    of synthetic clusters, of which 64 candidates found all; for 100 memories 4·k found all.
    """
    least = MIN_CANDIDATES
    if rows <= TINY_ROWS:
        factor, least = tuning.candidates_factor // 5, TINY_CANDIDATES
    elif rows <= SMALL_ROWS:
        factor = tuning.candidates_factor // 4
    elif rows <= MEDIUM_ROWS:
        factor = tuning.candidates_factor
    else:
        factor = 2 * tuning.candidates_factor
    return min(MAX_CANDIDATES, max(least, limit, limit * factor * tuning.widening))


# A filter on metadata is judged by the row. Reading all rows of a user of 1,500 took 0.9 to 2.5 ms, and a first round
# of candidates 1.2 ms or more, which is in vain where the filter lets little through.
SCANNED_ROWS = 2_000
# Looking a candidate up by its id took as long as reading 4 to 9 rows in a scan.
ROWS_PER_LOOKUP = 4
# So many times the candidates are picked where a filter on metadata will take some away: one in ten may pass, and
# there need not be a second round.
FILTERED_PICKS = 3


def enough_for(limit: int, passing: int, tuning: SearchTuning) -> int:
    """Returns how many candidates that pass a filter, as `passing` memories do, suffice for `limit` results.

    Taking the first that pass for the results found 0.7 to 0.9 of the top 10 of 100 to 1,000 memories by signs;
    comparing 4·k of them precisely found 0.98 to 1.0, and of 2,500 memories 5·k found 0.975 to 1.0.
    """
    factor = max(4, tuning.candidates_factor * passing // MEDIUM_ROWS)
    return min(candidates_for(limit, passing, tuning), limit * factor * tuning.widening)


def scan_is_cheaper(picks: int, user_rows: int | None, *, reads_metadata: bool) -> bool:
    """Tells whether comparing all of the user's rows costs less than picking candidates and looking them up."""
    if user_rows is None or picks > MAX_CANDIDATES:
        return picks > MAX_CANDIDATES
    if reads_metadata:
        return user_rows <= SCANNED_ROWS or picks * ROWS_PER_LOOKUP > user_rows
    return user_rows <= picks


def picks_for(enough: int, *, picked: int, passed: int) -> int:
    """Returns how many candidates to pick for `enough` of them to pass, now that `passed` of `picked` did."""
    return max(2 * picked, 3 * enough * picked // (2 * max(1, passed)))
