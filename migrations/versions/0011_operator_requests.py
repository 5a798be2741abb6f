"""Remembered requests of administrators: apart from those of users, which go with their user."""

from alembic import op

from db.migrate import verbatim

revision = "0011"
down_revision = "0010"

# As request_ids; it belongs to nobody, and so only the role that works across users may use it.
TABLE = """
CREATE TABLE operator_requests (
    request_id    uuid PRIMARY KEY,
    request_hash  bytea NOT NULL,
    response      bytea,
    expires_at    timestamptz NOT NULL
);
CREATE INDEX operator_requests_expiry ON operator_requests (expires_at);
"""

PRIVILEGES = """
DO $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON operator_requests TO %I', (
        SELECT min(r.rolname) FROM pg_policy p JOIN pg_roles r ON r.oid = ANY(p.polroles)
        WHERE p.polrelid = 'users'::regclass AND p.polname = 'all_users'));
END
$$
"""


def upgrade() -> None:
    """Creates the table."""
    op.execute(verbatim(TABLE))
    op.execute(verbatim(PRIVILEGES))


def downgrade() -> None:
    """Drops it; a call repeated across this is carried out again."""
    op.execute("DROP TABLE operator_requests")
