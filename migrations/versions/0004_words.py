"""What searches by words read: each memory's stems, and one index that finds them user by user.

The index is over stems prefixed by a hash of their user: a GIN index cannot lead with user_id without an extension,
and one over plain stems would read the postings of all users. docs/adr/0011-lexical-search.md compares it with a table
of postings and with scanning a user's rows.
"""

from alembic import context, op

from db.migrate import verbatim

revision = "0004"
down_revision = "0003"

SIGNS_FROM_DIMENSIONS = 768
MAX_INDEXED_DIMENSIONS = 12_000

# A regconfig column would bar pg_upgrade. The cast from text is stable only because of the search path, on which a full
# name does not depend. In place of an expression with one branch a language, which every INSERT took 190 µs to prepare.
# A word of over 2,046 bytes is left out with a notice. Thousands of them while a COPY is under way fill the connection
# that the client does not read meanwhile, and both wait for ever: hence no notices.
STEMS = """
CREATE FUNCTION memory_stems(language text, body text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET client_min_messages = warning AS $$
BEGIN
    RETURN to_tsvector(('pg_catalog.' || language)::regconfig, body);
END
$$
"""

# embedding and its norm are absent while a memory waits for its embedding.
COLUMNS = """
ALTER TABLE memory_entries
    ADD COLUMN language text NOT NULL DEFAULT 'english',
    ADD COLUMN superseded_by uuid,
    ADD COLUMN embedding_error text,
    ADD COLUMN content_hash bigint GENERATED ALWAYS AS (hashtextextended(content, 0)) STORED,
    ADD COLUMN lexemes tsvector GENERATED ALWAYS AS (memory_stems(language, content || ' ' || summary)) STORED,
    ADD COLUMN lexeme_count integer
        GENERATED ALWAYS AS (length(memory_stems(language, content || ' ' || summary))) STORED,
    ALTER COLUMN embedding DROP NOT NULL,
    ALTER COLUMN embedding_norm DROP NOT NULL,
    ADD CHECK ((embedding IS NULL) = (embedding_norm IS NULL))
"""

# Its cost keeps the planner from computing it for each row of a user in place of reading the index. A lexeme has at
# most 2,046 bytes, with the hash; array_to_tsvector does not check, and the row would not be found by any word.
TERMS = """
CREATE FUNCTION memory_terms(user_id text, lexemes tsvector) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10000
RETURN (
    SELECT array_to_tsvector(coalesce(array_agg(to_hex(hashtextextended(user_id, 0)) || ':' || lexeme), '{}'))
    FROM unnest(tsvector_to_array(lexemes)) AS lexeme
    WHERE octet_length(lexeme) <= 2000
)
"""

WORDS = """
CREATE INDEX memory_entries_words ON memory_entries USING gin (memory_terms(user_id, lexemes))
    WITH (gin_pending_list_limit = 256) WHERE deleted_at IS NULL
"""

# In the order of the hash, which is random and always the same, its first entries are a sample of a user's memories:
# searches by words average their lengths and read some of them.
SAME_CONTENT = """
CREATE INDEX memory_entries_content ON memory_entries (user_id, content_hash) INCLUDE (lexeme_count)
    WHERE deleted_at IS NULL
"""

# As in 0003, without memories that have no embedding yet.
SEARCH = """
CREATE INDEX memory_entries_search ON memory_entries (user_id)
    INCLUDE (id, importance, conversation_key, created_at, {vector})
    WHERE deleted_at IS NULL AND embedding IS NOT NULL
"""

# What waits for its embedding: one row a memory, taken with FOR UPDATE SKIP LOCKED. A memory whose embedding failed for
# good keeps its row, with failed_at.
JOBS = """
CREATE TABLE embedding_jobs (
    user_id          text COLLATE "C" NOT NULL,
    id               uuid NOT NULL,
    embed_text       text,
    attempts         integer NOT NULL DEFAULT 0,
    queued_at        timestamptz NOT NULL,
    next_attempt_at  timestamptz NOT NULL,
    failed_at        timestamptz,
    last_error       text,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, id) REFERENCES memory_entries ON DELETE CASCADE
);
CREATE INDEX embedding_jobs_due ON embedding_jobs (next_attempt_at) WHERE failed_at IS NULL;

CREATE INDEX embedding_cache_age ON embedding_cache (created_at);
"""


def upgrade() -> None:
    """Adds the columns, which rewrites memory_entries once, and the indexes."""
    dimensions = context.config.attributes["space"].dimensions
    op.execute("DROP INDEX IF EXISTS memory_entries_search")
    op.execute(verbatim(STEMS))
    op.execute(verbatim(COLUMNS))
    op.execute(verbatim(TERMS))
    op.execute(verbatim(WORDS))
    op.execute(verbatim(SAME_CONTENT))
    if dimensions < SIGNS_FROM_DIMENSIONS:
        op.execute(verbatim(SEARCH.format(vector="embedding_norm, embedding")))
    elif dimensions <= MAX_INDEXED_DIMENSIONS:
        op.execute(verbatim(SEARCH.format(vector="bits")))
    op.execute(verbatim(JOBS))


def downgrade() -> None:
    """Is not offered: memories that wait for their embedding would be lost."""
    raise NotImplementedError("restore a backup instead; a downgrade would lose memories without an embedding")
