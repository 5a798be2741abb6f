"""The rules of which approximate indexes there should be, without a database."""

import dataclasses
from typing import Any

import pytest

from db.ann_catalog import GLOBAL_NAME, IndexInfo, IndexState, name_of
from db.ann_indexes import IndexOptions
from db.ann_policy import Act, AnnPolicy, UserRows, steps

POLICY = AnnPolicy(options=IndexOptions(), min_rows=20_000, drop_rows=10_000, max_indexes=3)


def policy(**changes: Any) -> AnnPolicy:
    return dataclasses.replace(POLICY, **changes)


def index(user_id: str | None, **changes: Any) -> IndexInfo:
    fields: dict[str, Any] = {
        "name": GLOBAL_NAME if user_id is None else name_of(user_id),
        "user_id": user_id,
        "method": "hnsw",
        "state": IndexState.READY,
        "bytes": 1,
        "scans": 0,
        "entries": 30_000,
        "options": {"m": 16, "ef_construction": 128},
    }
    return IndexInfo(**(fields | changes))


def wanted(**rows: int) -> dict[str, UserRows]:
    return {user_id: UserRows(count, count) for user_id, count in rows.items()}


def due(
    indexes: list[IndexInfo], users: dict[str, UserRows], rules: AnnPolicy = POLICY, *, total_rows: int = 1_000_000
) -> list[tuple[Act, str | None]]:
    """Returns what is to be done, and for whom or to which index."""
    names = {name_of(user_id): user_id for user_id in users} | {GLOBAL_NAME: "everybody"}
    return [(step.act, names.get(step.name, step.name)) for step in steps(indexes, users, total_rows, rules)]


def test_nothing_wanted_nothing_done() -> None:
    assert due([], {}) == []


def test_builds_go_by_size() -> None:
    users = wanted(anna=30_000, boris=90_000, chloe=50_000)
    assert due([], users) == [(Act.BUILD, "boris"), (Act.BUILD, "chloe"), (Act.BUILD, "anna")]


@pytest.mark.parametrize(
    ("rows", "without_index", "with_index"),
    [
        (20_000, [(Act.BUILD, "anna")], []),
        (19_999, [(Act.FORGET, "anna")], []),
        (10_000, [(Act.FORGET, "anna")], []),
        (9_999, [(Act.FORGET, "anna")], [(Act.FORGET, "anna")]),
        (0, [(Act.FORGET, "anna")], [(Act.FORGET, "anna")]),
    ],
)
def test_an_index_is_kept_for_less_than_it_takes_to_earn_one(
    rows: int, without_index: list[tuple[Act, str]], with_index: list[tuple[Act, str]]
) -> None:
    assert due([], wanted(anna=rows)) == without_index
    assert due([index("anna", entries=rows)], wanted(anna=rows)) == with_index


def test_the_largest_get_what_room_there_is() -> None:
    users = wanted(anna=30_000, boris=31_000, chloe=32_000, dora=33_000)
    assert due([], users) == [(Act.BUILD, "dora"), (Act.BUILD, "chloe"), (Act.BUILD, "boris")]


def test_only_a_much_larger_user_takes_anothers_place() -> None:
    holders = [index(user_id) for user_id in ("anna", "boris", "chloe")]
    users = wanted(anna=30_000, boris=40_000, chloe=50_000)
    assert due(holders, users | wanted(dora=44_999)) == []
    assert due(holders, users | wanted(dora=45_000)) == [(Act.DROP, "anna"), (Act.BUILD, "dora")]
    # Each takes the place of the smallest left; boris is not much smaller than the second.
    both = users | wanted(dora=90_000, erik=59_999)
    assert due(holders, both) == [(Act.DROP, "anna"), (Act.BUILD, "dora")]


def test_a_lower_cap_drops_the_smallest() -> None:
    holders = [index(user_id) for user_id in ("anna", "boris", "chloe")]
    users = wanted(anna=30_000, boris=40_000, chloe=50_000)
    assert due(holders, users, policy(max_indexes=1)) == [(Act.DROP, "boris"), (Act.DROP, "anna")]
    assert {act for act, _ in due(holders, users, policy(max_indexes=0))} == {Act.DROP}


def test_switched_off_everything_goes() -> None:
    rules = policy(enabled=False)
    assert due([index("anna")], wanted(anna=90_000), rules) == [(Act.FORGET, "anna")]


@pytest.mark.parametrize("name", [name_of("stranger"), GLOBAL_NAME])
def test_what_nobody_wants_is_dropped(name: str) -> None:
    [(act, _)] = due([index(None, name=name)], {})
    assert act is Act.DROP


def test_an_interrupted_build_is_cleared_up_and_repeated() -> None:
    broken = [index("anna", state=IndexState.INVALID)]
    assert due(broken, wanted(anna=30_000)) == [(Act.DROP, "anna"), (Act.BUILD, "anna")]
    # Below what earns an index, the wish ends with it.
    assert due(broken, wanted(anna=15_000)) == [(Act.DROP, "anna"), (Act.FORGET, "anna")]


@pytest.mark.parametrize("suffix", ["_new", "_ccnew", "_ccnew2", "_ccold"])
@pytest.mark.parametrize("state", [IndexState.INVALID, IndexState.READY])
def test_leftovers_are_dropped_and_the_index_stays(suffix: str, state: IndexState) -> None:
    leftover = index(None, name=name_of("anna") + suffix, state=state)
    assert due([index("anna"), leftover], wanted(anna=30_000)) == [(Act.DROP, leftover.name)]


def test_what_somebody_builds_is_left_alone() -> None:
    building = [index("anna", state=IndexState.BUILDING), index(None, name=name_of("x"), state=IndexState.BUILDING)]
    assert due(building, wanted(anna=30_000)) == []


def test_another_method_means_building_anew() -> None:
    rules = policy(options=IndexOptions(method="ivfflat"))
    assert due([index("anna")], wanted(anna=30_000), rules) == [(Act.REBUILD, "anna")]


def test_other_parameters_do_not() -> None:
    rules = policy(options=IndexOptions(hnsw_m=32, hnsw_ef_construction=256))
    assert due([index("anna")], wanted(anna=30_000), rules) == []


@pytest.mark.parametrize(
    ("lists", "expected"), [(30, []), (8, []), (7, [Act.REBUILD]), (120, []), (121, [Act.REBUILD])]
)
def test_lists_follow_a_users_size(lists: int, expected: list[Act]) -> None:
    ivfflat = index("anna", method="ivfflat", options={"lists": lists})
    rules = policy(options=IndexOptions(method="ivfflat"))
    assert [act for act, _ in due([ivfflat], wanted(anna=30_000), rules)] == expected
    fixed = policy(options=IndexOptions(method="ivfflat", ivfflat_lists=5))
    assert due([ivfflat], wanted(anna=30_000), fixed) == []


@pytest.mark.parametrize(
    ("now", "peak", "entries", "expected"),
    [
        (30_000, 30_000, 60_000, []),
        (29_999, 29_999, 60_000, [Act.REBUILD]),
        # It grew after the build, which the index does not tell.
        (29_999, 60_000, 20_000, [Act.REBUILD]),
        (30_000, 60_000, 20_000, []),
        (90_000, 90_000, 30_000, []),
    ],
)
def test_deleting_most_means_building_anew(now: int, peak: int, entries: int, expected: list[Act]) -> None:
    acts = [act for act, _ in due([index("anna", entries=entries)], {"anna": UserRows(now, peak)})]
    assert acts == expected


def test_the_index_across_users_comes_and_goes_with_its_setting() -> None:
    rules = policy(global_index=True)
    assert due([], {}, rules) == [(Act.BUILD, "everybody")]
    there = index(None, entries=1_000_000)
    assert due([there], {}, rules) == []
    assert due([there], {}, POLICY) == [(Act.DROP, "everybody")]
    assert due([there], {}, rules, total_rows=400_000) == [(Act.REBUILD, "everybody")]
    # PostgreSQL has not looked at the table yet.
    assert due([there], {}, rules, total_rows=0) == []
    # It does not count among the users' indexes, and needs none of them.
    assert due([there], wanted(anna=30_000), policy(global_index=True, enabled=False)) == [(Act.FORGET, "anna")]
