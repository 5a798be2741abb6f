"""Row-level security, the second wall between users: it holds where a statement forgets its user_id.

Two roles that nobody logs in as. A transaction takes one of them: the first sees and writes the rows of the user whom
the transaction has set as memory.user_id, and without one no rows; the second works across users. The owner of the
tables, forced under the policies and named by none of them, sees nothing: a later migration that reads or changes rows
has to take the second role first. docs/adr/0014-row-level-security.md has the reasons.
"""

from alembic import op
from sqlalchemy import TextClause

from db.migrate import verbatim

revision = "0008"
down_revision = "0007"

# Roles belong to the cluster: were their names the same in all its databases, whoever may take them for one database
# could read the others too. A name has at most 63 bytes, and may be in use by a database that was called so before.
# Citus refuses policies with subqueries; the empty text is what a setting has after the transaction that set it, and
# belongs to nobody.
DECLARATIONS = """
    database text := (
        SELECT CASE WHEN octet_length(here.datname) <= 44 AND NOT EXISTS (
            SELECT FROM pg_shdepend used JOIN pg_roles r ON r.oid = used.refobjid
            WHERE used.refclassid = 'pg_authid'::regclass
                AND r.rolname IN ('memory_service_' || here.datname, 'memory_maintenance_' || here.datname)
                AND used.dbid NOT IN (0, here.oid)
        ) THEN here.datname::text ELSE here.oid::text END
        FROM pg_database here WHERE here.datname = current_database());
    service text := 'memory_service_' || database;
    maintenance text := 'memory_maintenance_' || database;
    of_user text := 'user_id = nullif(current_setting(''memory.user_id'', true), '''')';
    name text;
"""

# INHERIT FALSE: a policy applies to whoever inherits its role, and the login role would see everything by itself.
ROLES = """
BEGIN
    FOREACH name IN ARRAY ARRAY[service, maintenance] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
        IF NOT pg_has_role(name, 'SET') THEN
            EXECUTE format('GRANT %I TO %I WITH INHERIT FALSE, SET TRUE', name, current_user);
        END IF;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = name AND (rolsuper OR rolbypassrls)) THEN
            RAISE invalid_role_specification USING MESSAGE = format(
                'the role %I bypasses row-level security; have an administrator run, and then migrate again: '
                'ALTER ROLE %1$I NOSUPERUSER NOBYPASSRLS', name);
        END IF;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE invalid_role_specification USING MESSAGE = format(
        'this role may not create the roles of row-level security; have an administrator run, and then migrate again: '
        'CREATE ROLE %I NOLOGIN; CREATE ROLE %I NOLOGIN; GRANT %1$I, %2$I TO %I WITH INHERIT FALSE, SET TRUE',
        service, maintenance, current_user);
END
"""

# Tables of nobody's own rows (embedding_cache, embedding_space, api_keys ...) have no policies: the first role has no
# privileges on them, but for reading what the embedding space is.
POLICIES = """
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'users', 'conversations', 'memory_entries', 'memory_access', 'request_ids', 'embedding_jobs', 'ann_indexes'
    ] LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO %I', name, service);
        EXECUTE format('CREATE POLICY one_user ON %I TO %I USING (%s) WITH CHECK (%3$s)', name, service, of_user);
    END LOOP;
    FOR name IN
        SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND a.attname = 'user_id' AND NOT a.attisdropped
    LOOP
        EXECUTE format('CREATE POLICY all_users ON %I TO %I USING (true) WITH CHECK (true)', name, maintenance);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I, %I', current_schema(), service, maintenance);
    GRANT SELECT ON alembic_version, embedding_space TO PUBLIC;
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', current_schema(),
        maintenance);
    EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM %I', maintenance);
    -- Of further migrations, and the months of the audit log.
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %I',
        current_schema(), maintenance);
    EXECUTE format('GRANT EXECUTE ON FUNCTION audit_log_prepare, audit_log_trim TO %I', maintenance);
END
"""

# The roles stay: without what is undone here they mean nothing. The database may be called otherwise by now.
UNDO = """
BEGIN
    SELECT min(r.rolname) FILTER (WHERE p.polname = 'one_user'), min(r.rolname) FILTER (WHERE p.polname = 'all_users')
    INTO service, maintenance
    FROM pg_policy p JOIN pg_roles r ON r.oid = ANY(p.polroles) WHERE p.polrelid = 'memory_entries'::regclass;
    FOR name IN SELECT tablename FROM pg_policies WHERE schemaname = current_schema() AND policyname = 'all_users' LOOP
        EXECUTE format('ALTER TABLE %I DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('DROP POLICY IF EXISTS one_user ON %I', name);
        EXECUTE format('DROP POLICY all_users ON %I', name);
    END LOOP;
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I REVOKE ALL ON TABLES FROM %I', current_schema(), maintenance);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %I, %I', current_schema(), service, maintenance);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM %I, %I', current_schema(), service, maintenance);
    EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM %I, %I', current_schema(), service, maintenance);
END
"""


def upgrade() -> None:
    """Creates the roles and the policies; ends with what an administrator has to run where it may not."""
    op.execute(_block(ROLES))
    op.execute(_block(POLICIES))


def downgrade() -> None:
    """Takes the policies and all privileges of the roles away."""
    op.execute(_block(UNDO))


def _block(body: str) -> TextClause:
    return verbatim(f"DO $$\nDECLARE{DECLARATIONS}{body.strip()}\n$$")
