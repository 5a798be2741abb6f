"""Filters: which of them share a statement."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from db.filters import Filter, index_conditions, of_user, row_conditions
from tests.storage.sample_memories import NOW

EVERYTHING: dict[str, Any] = {
    "conversation_id": "c",
    "min_importance": 2,
    "max_importance": 9,
    "metadata_contains": {"a": 1},
    "created_after": NOW,
    "created_before": NOW + timedelta(days=1),
}


def names(filters: Filter) -> frozenset[str]:
    return filters.compiled().names


def where(filters: Filter) -> str:
    return of_user(row_conditions(names(filters), None)).as_string(None)


def test_shape_names_the_conditions() -> None:
    assert names(Filter()) == frozenset()
    assert names(Filter(**EVERYTHING, show_deleted=True)) == {*EVERYTHING, "show_deleted"}
    # Values that look like nothing are conditions all the same.
    assert names(Filter(metadata_contains={}, max_importance=0, conversation_id="")) == {
        "metadata_contains",
        "max_importance",
        "conversation_id",
    }


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_condition_is_in_the_statement_once(name: str) -> None:
    alone = where(Filter(**{name: EVERYTHING[name]}))
    assert alone.count(f"%({name})s") == 1
    assert alone.count("%(") == 2  # the other one is the user


def test_every_filter_names_the_user_and_hides_deleted_memories() -> None:
    for filters in (Filter(), Filter(**EVERYTHING)):
        conditions = where(filters)
        assert conditions.startswith("user_id = %(user_id)s")
        assert "deleted_at IS NULL" in conditions
    conditions = where(Filter(show_deleted=True))
    assert conditions == "user_id = %(user_id)s"


def test_parameters_are_the_values() -> None:
    parameters = Filter(**EVERYTHING).compiled().parameters
    metadata = parameters.pop("metadata_contains")
    assert isinstance(metadata, Jsonb)
    assert metadata.obj == {"a": 1}
    assert parameters == {name: value for name, value in EVERYTHING.items() if name != "metadata_contains"} | {
        "show_deleted": False
    }


def test_the_covering_index_judges_all_but_metadata() -> None:
    conditions = of_user(index_conditions(names(Filter(**EVERYTHING)))).as_string(None)
    assert "conversation_key" in conditions
    # The condition of the index itself, beside that of live memories.
    assert "embedding IS NOT NULL" in conditions
    assert {name for name in EVERYTHING if f"%({name})s" in conditions} == EVERYTHING.keys() - {"metadata_contains"}
