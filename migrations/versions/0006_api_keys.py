"""API keys: who may call, as what, and for which users. No secret is stored, only salted digests."""

from alembic import op

from db.migrate import verbatim

revision = "0006"
down_revision = "0005"

# A key that is for everybody says so: no list that ends up empty by mistake opens all users.
# Two secrets at most: rotating a key leaves the one before in force until previous_valid_until.
TABLE = """
CREATE TABLE api_keys (
    id                    text COLLATE "C" PRIMARY KEY,
    name                  text NOT NULL,
    role                  text NOT NULL CHECK (role IN ('reader', 'writer', 'admin')),
    everyone              boolean NOT NULL,
    users                 text[] NOT NULL,
    prefixes              text[] NOT NULL,
    salt                  bytea NOT NULL,
    digest                bytea NOT NULL,
    previous_salt         bytea,
    previous_digest       bytea,
    previous_valid_until  timestamptz,
    created_at            timestamptz NOT NULL,
    expires_at            timestamptz,
    rotated_at            timestamptz,
    revoked_at            timestamptz,
    last_used_at          timestamptz,
    CHECK (everyone = (cardinality(users) = 0 AND cardinality(prefixes) = 0)),
    CHECK (num_nulls(previous_salt, previous_digest, previous_valid_until) IN (0, 3))
)
"""


def upgrade() -> None:
    """Creates the table."""
    op.execute(verbatim(TABLE))


def downgrade() -> None:
    """Drops it; who called with a key has to be given a new one after the next upgrade."""
    op.execute(verbatim("DROP TABLE api_keys"))
