"""What the database is busy with, as GetServerInfo and the metrics tell it: approximate indexes, waiting embeddings."""

from dataclasses import dataclass

from db.ann_catalog import IndexInfo, list_indexes
from db.connection import Connection
from db.embedding_queue_state import QueueCounts, read_counts


@dataclass(frozen=True, slots=True)
class StoredState:
    """All of it at one time."""

    indexes: list[IndexInfo]
    queue: QueueCounts


def read_stored_state(conn: Connection) -> StoredState:
    """Returns the state of now."""
    return StoredState(list_indexes(conn), read_counts(conn))
