"""Strategies: memories that have much in common, and filters that tell them apart."""

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from db.filters import Filter
from tests.storage.sample_memories import NOW

conversations = st.sampled_from([None, "a", "ab", "b"])
moments = st.integers(-2, 2).map(lambda seconds: NOW + timedelta(seconds=seconds))
importances = st.integers(1, 10)

metadata: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "lang": st.sampled_from(["en", "de", None, 1, True]),
        "tags": st.lists(st.sampled_from(["x", "y", 1, ["x"]]), max_size=3),
        "from": st.fixed_dictionaries({}, optional={"app": st.sampled_from(["chat", "mail"]), "n": st.integers(0, 1)}),
    },
)

conditions: dict[str, st.SearchStrategy[Any]] = {
    "conversation_id": st.sampled_from(["a", "ab", "b"]),
    "min_importance": importances,
    "max_importance": importances,
    "metadata_contains": metadata,
    "created_after": moments,
    "created_before": moments,
    "show_deleted": st.just(value=True),
}
# Few conditions at a time: together, all of them let nothing through.
filters = st.sets(st.sampled_from(sorted(conditions)), min_size=1, max_size=2).flatmap(
    lambda names: st.builds(Filter, **{name: conditions[name] for name in names})
)
