"""The numbers of search plans: how many candidates, and when a scan is cheaper than picking any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.search_plan import (
    MAX_CANDIDATES,
    MAX_INDEXED_DIMENSIONS,
    ROWS_PER_LOOKUP,
    SCANNED_ROWS,
    SIGNS_FROM_DIMENSIONS,
    TINY_CANDIDATES,
    Coarse,
    SearchTuning,
    candidates_for,
    coarse_of,
    enough_for,
    picks_for,
    scan_is_cheaper,
)

limits = st.integers(1, 1_000)
sizes = st.integers(0, 10_000_000)
tunings = st.builds(SearchTuning, candidates_factor=st.integers(1, 100), widening=st.sampled_from([1, 2, 4, 8]))


def test_what_the_covering_index_holds() -> None:
    assert coarse_of(1) is coarse_of(SIGNS_FROM_DIMENSIONS - 1) is Coarse.EMBEDDING
    assert coarse_of(SIGNS_FROM_DIMENSIONS) is coarse_of(MAX_INDEXED_DIMENSIONS) is Coarse.SIGNS
    assert coarse_of(MAX_INDEXED_DIMENSIONS + 1) is Coarse.NOTHING


@given(limit=limits, rows=sizes, tuning=tunings)
def test_candidates_suffice_for_the_results_and_stay_bounded(limit: int, rows: int, tuning: SearchTuning) -> None:
    candidates = candidates_for(limit, rows, tuning)
    assert max(limit, TINY_CANDIDATES) <= candidates <= MAX_CANDIDATES


@given(limit=limits, rows=sizes, more=sizes, tuning=tunings)
def test_more_competitors_mean_more_candidates(limit: int, rows: int, more: int, tuning: SearchTuning) -> None:
    assert candidates_for(limit, rows, tuning) <= candidates_for(limit, rows + more, tuning)
    assert candidates_for(limit, rows, tuning) <= candidates_for(min(1_000, limit + 1), rows, tuning)


@pytest.mark.parametrize(
    ("limit", "rows", "widening", "expected"),
    [
        (10, 100, 1, 40),
        (10, 101, 1, 64),
        (100, 1_000, 1, 500),
        (10, 1_001, 1, 200),
        (10, 10_001, 1, 400),
        (10, 10_001, 2, 800),
    ],
)
def test_candidates_by_size(limit: int, rows: int, widening: int, expected: int) -> None:
    assert candidates_for(limit, rows, SearchTuning(widening=widening)) == expected


@given(limit=limits, tuning=st.builds(SearchTuning, ef_search=st.integers(1, 1_000), widening=st.integers(1, 8)))
def test_ef_search_keeps_to_pgvectors_bounds(limit: int, tuning: SearchTuning) -> None:
    assert min(1_000, 2 * limit) <= tuning.ef(limit) <= 1_000


@given(limit=limits, passing=sizes, tuning=tunings)
def test_enough_is_more_than_the_results_and_no_more_than_without_a_filter(
    limit: int, passing: int, tuning: SearchTuning
) -> None:
    enough = enough_for(limit, passing, tuning)
    assert min(4 * limit, candidates_for(limit, passing, tuning)) <= enough <= candidates_for(limit, passing, tuning)


@pytest.mark.parametrize(
    ("passing", "widening", "expected"),
    [
        (0, 1, 40),
        (1_000, 1, 40),
        (2_500, 1, 50),
        (5_000, 1, 100),
        (10_000, 1, 200),
        (1_000_000, 1, 400),
        (5_000, 2, 200),
    ],
)
def test_enough_of_those_that_pass(passing: int, widening: int, expected: int) -> None:
    assert enough_for(10, passing, SearchTuning(widening=widening)) == expected


def test_a_scan_is_cheaper_for_small_users_and_vain_picking() -> None:
    assert scan_is_cheaper(64, 64, reads_metadata=False)
    assert not scan_is_cheaper(64, 65, reads_metadata=False)
    assert scan_is_cheaper(64, SCANNED_ROWS, reads_metadata=True)
    assert not scan_is_cheaper(64, SCANNED_ROWS + 1, reads_metadata=True)
    assert not scan_is_cheaper(1_000, ROWS_PER_LOOKUP * 1_000, reads_metadata=True)
    assert scan_is_cheaper(1_001, ROWS_PER_LOOKUP * 1_000, reads_metadata=True)


@given(reads_metadata=st.booleans(), rows=st.none() | sizes)
def test_no_more_than_a_bounded_number_is_picked(rows: int | None, *, reads_metadata: bool) -> None:
    assert scan_is_cheaper(MAX_CANDIDATES + 1, rows, reads_metadata=reads_metadata)
    if rows is None:
        assert not scan_is_cheaper(MAX_CANDIDATES, rows, reads_metadata=reads_metadata)


@given(enough=st.integers(1, MAX_CANDIDATES), picked=st.integers(1, MAX_CANDIDATES), share=st.floats(0, 1))
def test_picks_grow_with_what_did_not_pass(enough: int, picked: int, share: float) -> None:
    passed = int(share * picked)
    picks = picks_for(enough, picked=picked, passed=passed)
    assert picks >= 2 * picked
    # At the same rate, and with some to spare, enough of them pass.
    assert picks * passed >= enough * picked or passed == 0
    assert picks <= picks_for(enough, picked=picked, passed=max(0, passed - 1))


@pytest.mark.parametrize(
    ("lists", "ef_search", "probes"),
    [(100, None, 40), (100, 80, 50), (1_000, 16, 100), (10, 1, 1), (10, 1_000, 10), (1, None, 1)],
)
def test_a_share_of_an_ivfflat_indexs_lists_is_read(lists: int, ef_search: int | None, probes: int) -> None:
    assert SearchTuning().probes(lists, ef_search) == probes


def test_more_lists_are_read_when_recall_was_too_low() -> None:
    assert SearchTuning(widening=2).probes(1_000, None) == 2 * SearchTuning().probes(1_000, None)
