"""Remembered request ids, and the cache of embeddings that cost a provider call."""

from alembic import op

from db.migrate import verbatim

revision = "0002"
down_revision = "0001"

TABLES = """
CREATE TABLE request_ids (
    user_id       text COLLATE "C" NOT NULL REFERENCES users ON DELETE CASCADE,
    request_id    uuid NOT NULL,
    request_hash  bytea NOT NULL,
    response      bytea,
    expires_at    timestamptz NOT NULL,
    PRIMARY KEY (user_id, request_id)
);
CREATE INDEX request_ids_expiry ON request_ids (expires_at);

-- Keyed by SHA-256 of model and text: holds no text and belongs to no user.
CREATE TABLE embedding_cache (
    key         bytea PRIMARY KEY,
    embedding   bytea NOT NULL,
    created_at  timestamptz NOT NULL
);
"""


def upgrade() -> None:
    """Creates both tables."""
    op.execute(verbatim(TABLES))


def downgrade() -> None:
    """Drops both tables; neither holds anything a caller stored."""
    op.execute(verbatim("DROP TABLE embedding_cache; DROP TABLE request_ids"))
