"""Maintenance of approximate indexes: users that earn one, rounds until nothing is due, and what is there then."""

from collections.abc import Callable
from typing import Any

from db.ann_catalog import IndexState
from db.ann_indexes import IndexOptions
from db.ann_maintenance import AnnMaintenance
from tests.storage import clustered
from tests.storage.clustered import indexes_of

POLICY: dict[str, Any] = {"min_rows": 200, "drop_rows": 100, "max_indexes": 10}
# Takes a second or two for 1,500 memories.
SLOW = IndexOptions(hnsw_ef_construction=1_000)

NewMaintenance = Callable[..., AnnMaintenance]


def work(maintenance: AnnMaintenance) -> None:
    """Runs rounds until nothing more is due at the moment, and leaves the lead to others."""
    while maintenance.round():
        pass
    maintenance.resign()


def users_with_index(url: str) -> set[str | None]:
    assert all(index.state is IndexState.READY for index in indexes_of(url).values())
    return {index.user_id for index in indexes_of(url).values()}


def store_users(url: str, **rows: int) -> None:
    for seed, (user_id, count) in enumerate(rows.items()):
        clustered.store(url, user_id, clustered.clustered(count, seed=seed))
    clustered.wish(url, *rows)
