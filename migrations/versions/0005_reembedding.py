"""What a live database needs to move to another embedding model: columns whose names can change places.

A move adds a second, standby family of the columns of an embedding, fills it, and lets both families change their names
(db/reembedding.py). Nothing may then depend on which of them is the live one: neither a computed column, which could
not be added later without writing the table anew, nor NOT NULL.
"""

from alembic import context, op

from db.migrate import verbatim

revision = "0005"
down_revision = "0004"

SIGNS_FROM_DIMENSIONS = 768
MAX_INDEXED_DIMENSIONS = 12_000

# Whoever stores an embedding stores its bits from now on, where there are any.
BITS = "ALTER TABLE memory_entries ALTER COLUMN bits DROP EXPRESSION"

# 0003 left it out where there was no index for it; a database that moves to fewer dimensions gets the index.
CONVERSATION = """
ALTER TABLE memory_entries
    ADD COLUMN conversation_key bigint GENERATED ALWAYS AS (hashtextextended(conversation_id, 0)) STORED
"""

# True: the content has changed since the standby embedding was made.
COLUMNS = """
ALTER TABLE memory_entries
    ADD COLUMN standby_stale boolean,
    ALTER COLUMN embedding_model DROP NOT NULL,
    DROP CONSTRAINT memory_entries_check1,
    ADD CONSTRAINT memory_entries_embedding_check CHECK ({whole})
"""

# An embedding is there as a whole or not at all.
WHOLE = """
    CASE
        WHEN embedding IS NULL THEN embedding_norm IS NULL
        ELSE embedding_norm IS NOT NULL AND embedding_model IS NOT NULL
    END
"""
WHOLE_WITH_BITS = """
    CASE
        WHEN embedding IS NULL THEN embedding_norm IS NULL AND bits IS NULL
        ELSE embedding_norm IS NOT NULL AND bits IS NOT NULL AND embedding_model IS NOT NULL
    END
"""

# The move under way, if any: from where to where, and whether searches use the new embeddings already (SWITCHED).
REEMBEDDING = """
CREATE TABLE reembedding (
    singleton           boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    live_embedder       text NOT NULL,
    standby_embedder    text NOT NULL,
    standby_model       text NOT NULL,
    standby_dimensions  integer NOT NULL,
    phase               text NOT NULL CHECK (phase IN ('BACKFILL', 'SWITCHED')),
    started_at          timestamptz NOT NULL,
    switched_at         timestamptz
)
"""


def upgrade() -> None:
    """Adds a column and a table and loosens constraints; reads memory_entries once and writes none of it anew.

    Beyond 12,000 dimensions it does write the table anew.
    """
    dimensions = context.config.attributes["space"].dimensions
    has_bits = SIGNS_FROM_DIMENSIONS <= dimensions <= MAX_INDEXED_DIMENSIONS
    if has_bits:
        op.execute(verbatim(BITS))
    if dimensions > MAX_INDEXED_DIMENSIONS:
        op.execute(verbatim(CONVERSATION))
    op.execute(verbatim(COLUMNS.format(whole=(WHOLE_WITH_BITS if has_bits else WHOLE).strip())))
    op.execute(verbatim(REEMBEDDING))


def downgrade() -> None:
    """Is not offered: a move that was under way would be lost."""
    raise NotImplementedError("restore a backup instead; a downgrade would lose a move to another model")
