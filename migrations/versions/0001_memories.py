"""Users, conversations, memories and their access counters.

Written so that it also runs on Citus distributed by user_id: user_id leads every key, there are no triggers, and
storage is declared in CREATE TABLE.
"""

from alembic import context, op

from db.migrate import verbatim

revision = "0001"
down_revision = None

# A heap page holds a row of 8,160 bytes. An embedding is kept inline while it leaves 600 of them for the other
# columns, which can move out of line; out of line, an exact top-10 over 10,000 memories took 53 ms instead of 16-24.
INLINE_ROW_BYTES = 8_160 - 600

TABLES = """
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE embedding_space (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    model       text NOT NULL,
    dimensions  integer NOT NULL
);

CREATE TABLE users (
    user_id     text COLLATE "C" PRIMARY KEY,
    created_at  timestamptz NOT NULL
);

CREATE TABLE conversations (
    user_id          text COLLATE "C" NOT NULL REFERENCES users ON DELETE CASCADE,
    conversation_id  text COLLATE "C" NOT NULL,
    created_at       timestamptz NOT NULL,
    PRIMARY KEY (user_id, conversation_id)
);

CREATE TABLE memory_entries (
    user_id          text COLLATE "C" NOT NULL REFERENCES users ON DELETE CASCADE,
    id               uuid NOT NULL,
    conversation_id  text COLLATE "C",
    content          text NOT NULL,
    summary          text NOT NULL,
    metadata         jsonb NOT NULL,
    embedding        halfvec({dimensions}) STORAGE {storage} NOT NULL,
    embedding_norm   double precision NOT NULL,
    embedding_model  text NOT NULL,
    importance       smallint NOT NULL CHECK (importance BETWEEN 1 AND 10),
    version          bigint NOT NULL,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    deleted_at       timestamptz,
    purge_at         timestamptz,
    text_bytes       integer GENERATED ALWAYS AS (
        octet_length(content) + octet_length(summary) + octet_length(metadata::text)
    ) STORED,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, conversation_id) REFERENCES conversations ON DELETE CASCADE,
    CHECK ((deleted_at IS NULL) = (purge_at IS NULL))
) WITH (toast_tuple_target = 8160);

-- GetRecent by keyset, and GetStats without touching the wide rows.
CREATE INDEX memory_entries_recent ON memory_entries (user_id, created_at DESC, id DESC)
    INCLUDE (conversation_id, importance, deleted_at, text_bytes);

CREATE INDEX memory_entries_conversation ON memory_entries (user_id, conversation_id, created_at DESC, id DESC);

CREATE INDEX memory_entries_purge ON memory_entries (purge_at) WHERE purge_at IS NOT NULL;

-- Counters apart from the wide rows: bumped in place there, 0 % of the updates were HOT; here all of them are.
CREATE TABLE memory_access (
    user_id           text COLLATE "C" NOT NULL,
    id                uuid NOT NULL,
    access_count      bigint NOT NULL,
    last_accessed_at  timestamptz NOT NULL,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, id) REFERENCES memory_entries ON DELETE CASCADE
) WITH (fillfactor = 70);
"""


def upgrade() -> None:
    """Creates the tables for the embedding space that db.migrate was given."""
    space = context.config.attributes["space"]
    # 0003 adds one bit a dimension beside it.
    inline = 2 * space.dimensions + space.dimensions // 8 + 16 <= INLINE_ROW_BYTES
    op.execute(verbatim(TABLES.format(dimensions=space.dimensions, storage="PLAIN" if inline else "EXTERNAL")))
    model = space.model.replace("'", "''")
    values = f"('{model}', {space.dimensions})"
    op.execute(verbatim(f"INSERT INTO embedding_space (model, dimensions) VALUES {values}"))  # noqa: S608 - quoted


def downgrade() -> None:
    """Is not offered: it would erase every memory."""
    raise NotImplementedError("restore a backup instead; a downgrade would erase every memory")
