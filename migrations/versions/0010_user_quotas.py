"""What single users may store, where that is not what all users may."""

from alembic import op

from db.migrate import verbatim

revision = "0010"
down_revision = "0009"

# NULL: as much as the settings say, 0: any amount. A user for whom both are NULL has no row.
TABLE = """
CREATE TABLE user_quotas (
    user_id   text COLLATE "C" PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    memories  bigint CHECK (memories >= 0),
    bytes     bigint CHECK (bytes >= 0),
    CHECK (num_nonnulls(memories, bytes) > 0)
)
"""

# A user's own calls may read the quota, and no more. The roles go by the policies of 0008: the database may have been
# renamed since.
POLICIES = """
DO $$
DECLARE
    service text;
    maintenance text;
BEGIN
    SELECT min(r.rolname) FILTER (WHERE p.polname = 'one_user'), min(r.rolname) FILTER (WHERE p.polname = 'all_users')
    INTO STRICT service, maintenance
    FROM pg_policy p JOIN pg_roles r ON r.oid = ANY(p.polroles)
    WHERE p.polrelid = 'users'::regclass;
    EXECUTE format('GRANT SELECT ON user_quotas TO %I', service);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON user_quotas TO %I', maintenance);
    EXECUTE format(
        'CREATE POLICY one_user ON user_quotas TO %I '
        'USING (user_id = nullif(current_setting(''memory.user_id'', true), ''''))', service);
    EXECUTE format('CREATE POLICY all_users ON user_quotas TO %I USING (true) WITH CHECK (true)', maintenance);
    ALTER TABLE user_quotas ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
END
$$
"""


def upgrade() -> None:
    """Creates the table and its policies."""
    op.execute(verbatim(TABLE))
    op.execute(verbatim(POLICIES))


def downgrade() -> None:
    """Drops it; all users then have the quota of the settings."""
    op.execute("DROP TABLE user_quotas")
