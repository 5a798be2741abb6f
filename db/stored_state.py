"""What the database is busy with, as GetServerInfo and the metrics tell it: indexes, waiting embeddings, a move."""

from dataclasses import dataclass

from db.ann_catalog import IndexInfo, list_indexes
from db.connection import Connection
from db.embedding_queue_state import QueueCounts, read_counts
from db.reembedding import Reembedding, read_reembedding


@dataclass(frozen=True, slots=True)
class StoredState:
    """All of it at one time."""

    indexes: list[IndexInfo]
    queue: QueueCounts
    move: Reembedding | None
    """To another embedding model."""


def read_stored_state(conn: Connection) -> StoredState:
    """Returns the state of now."""
    return StoredState(list_indexes(conn), read_counts(conn), read_reembedding(conn))
