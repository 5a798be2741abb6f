"""Filters: which of them share a statement."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from db.filters import Filter, where
from tests.storage.sample_memories import NOW

EVERYTHING: dict[str, Any] = {
    "conversation_id": "c",
    "min_importance": 2,
    "max_importance": 9,
    "metadata_contains": {"a": 1},
    "created_after": NOW,
    "created_before": NOW + timedelta(days=1),
}


def test_shape_names_the_conditions() -> None:
    assert Filter().shape() == frozenset()
    assert Filter(**EVERYTHING, show_deleted=True).shape() == {*EVERYTHING, "show_deleted"}
    # Values that look like nothing are conditions all the same.
    assert Filter(metadata_contains={}, max_importance=0, conversation_id="").shape() == {
        "metadata_contains",
        "max_importance",
        "conversation_id",
    }


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_condition_is_in_the_statement_once(name: str) -> None:
    alone = where(Filter(**{name: EVERYTHING[name]}).shape()).as_string(None)
    assert alone.count(f"%({name})s") == 1
    assert alone.count("%(") == 2  # the other one is the user


def test_every_filter_names_the_user_and_hides_deleted_memories() -> None:
    for filters in (Filter(), Filter(**EVERYTHING)):
        conditions = where(filters.shape()).as_string(None)
        assert conditions.startswith("user_id = %(user_id)s")
        assert "deleted_at IS NULL" in conditions
    conditions = where(Filter(show_deleted=True).shape()).as_string(None)
    assert conditions == "user_id = %(user_id)s"


def test_parameters_are_the_values() -> None:
    parameters = Filter(**EVERYTHING).parameters()
    metadata = parameters.pop("metadata_contains")
    assert isinstance(metadata, Jsonb)
    assert metadata.obj == {"a": 1}
    assert parameters == {name: value for name, value in EVERYTHING.items() if name != "metadata_contains"} | {
        "show_deleted": False
    }
