"""What searches scan: an index of each user's live memories that holds the embedding, or its signs, itself.

Up to 767 dimensions the half-precision embedding fits a B-tree entry (2,704 bytes, of which a user_id may take
1,020): an exact search reads one user's entries in a row and no table page. From 768 on the signs of the components
stand in for it, and only the nearest by Hamming distance are compared precisely. Measured, top 10 of 10,000 memories:
256 dimensions 12.6 ms by the table and 3.0 ms by the index; 1,536 dimensions 17.6 ms by the table and 1.9 ms by the
signs, recall 1.0 on clustered data.
"""

from alembic import context, op

from db.migrate import verbatim

revision = "0003"
down_revision = "0002"

SIGNS_FROM_DIMENSIONS = 768
# Beyond this the signs do not fit a B-tree entry beside the longest user_id; every search then reads the table.
MAX_INDEXED_DIMENSIONS = 12_000

# A conversation_id may take 1,020 bytes; its hash takes 8, and a rerank compares the id itself.
CONVERSATION = """
ALTER TABLE memory_entries
    ADD COLUMN conversation_key bigint GENERATED ALWAYS AS (hashtextextended(conversation_id, 0)) STORED
"""

SIGNS = """
ALTER TABLE memory_entries
    ADD COLUMN conversation_key bigint GENERATED ALWAYS AS (hashtextextended(conversation_id, 0)) STORED,
    ADD COLUMN bits bit({dimensions}) GENERATED ALWAYS AS (binary_quantize(embedding)::bit({dimensions})) STORED
"""

INDEX = """
CREATE INDEX memory_entries_search ON memory_entries (user_id)
    INCLUDE (id, importance, conversation_key, created_at, {vector}) WHERE deleted_at IS NULL
"""

# Index-only scans need a fresh visibility map: vacuum after one row in a hundred, not one in five.
VACUUM = """
ALTER TABLE memory_entries SET (
    autovacuum_vacuum_insert_scale_factor = 0.01, autovacuum_vacuum_scale_factor = 0.02
)
"""

# Which users' approximate indexes are wanted. Whether one exists and is valid is what pg_index says.
ANN_INDEXES = """
CREATE TABLE ann_indexes (
    user_id     text COLLATE "C" PRIMARY KEY,
    index_name  text NOT NULL UNIQUE,
    wanted_at   timestamptz NOT NULL
)
"""


def upgrade() -> None:
    """Adds the columns and the index, which rewrites memory_entries once."""
    dimensions = context.config.attributes["space"].dimensions
    if dimensions < SIGNS_FROM_DIMENSIONS:
        op.execute(verbatim(CONVERSATION))
        op.execute(verbatim(INDEX.format(vector="embedding_norm, embedding")))
    elif dimensions <= MAX_INDEXED_DIMENSIONS:
        op.execute(verbatim(SIGNS.format(dimensions=dimensions)))
        op.execute(verbatim(INDEX.format(vector="bits")))
    op.execute(verbatim(VACUUM))
    op.execute(verbatim(ANN_INDEXES))


def downgrade() -> None:
    """Drops what searches scan; they then read the table."""
    op.execute("DROP TABLE ann_indexes")
    op.execute("DROP INDEX IF EXISTS memory_entries_search")
    op.execute("ALTER TABLE memory_entries DROP COLUMN IF EXISTS bits, DROP COLUMN IF EXISTS conversation_key")
