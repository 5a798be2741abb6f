"""The audit log: who did what to which memories, in partitions of a month that are dropped whole.

What has to be trimmed is dropped or truncated, never deleted row by row. The partitions are made and dropped by
functions that run as the owner of the schema, since the service may run as a role that owns nothing; whatever no month
has been made for goes to the default partition, so that nothing has to be running for entries to be taken.
"""

from alembic import op

from db.migrate import verbatim

revision = "0007"
down_revision = "0006"

# user_id, without a foreign key: entries outlive the user. The primary key is the order of QueryAuditLog.
TABLES = """
CREATE TABLE audit_log (
    at            timestamptz NOT NULL,
    id            uuid NOT NULL,
    subject       text COLLATE "C" NOT NULL,
    method        text COLLATE "C" NOT NULL,
    user_id       text COLLATE "C",
    memory_ids    uuid[] NOT NULL,
    memory_count  bigint NOT NULL,
    key_id        text COLLATE "C",
    request_id    text NOT NULL,
    peer          text NOT NULL,
    code          text,
    reason        text,
    PRIMARY KEY (at, id)
) PARTITION BY RANGE (at);

CREATE INDEX audit_log_user ON audit_log (user_id, at, id);
CREATE INDEX audit_log_subject ON audit_log (subject, at, id);
CREATE INDEX audit_log_method ON audit_log (method, at, id);

CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;
"""

# A month with entries in the default partition stays there: a partition for it would have to take them over. The lock
# keeps other processes from making the same partition, and nobody from reading or writing. Making a partition shuts
# out both for a moment, and waits for those who came before: not for long, since everybody after it waits as well.
PREPARE = """
CREATE FUNCTION audit_log_prepare(now timestamptz, months_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' AS $$
DECLARE
    month timestamp := date_trunc('month', now AT TIME ZONE 'UTC');
    start timestamptz;
    following timestamptz;
    partition_name text;
    made integer := 0;
BEGIN
    FOR n IN 0 .. months_ahead LOOP
        start := (month + make_interval(months => n)) AT TIME ZONE 'UTC';
        following := (month + make_interval(months => n + 1)) AT TIME ZONE 'UTC';
        partition_name := 'audit_log_' || to_char(start AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass(partition_name) IS NOT NULL;
        LOCK TABLE audit_log IN SHARE UPDATE EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass(partition_name) IS NOT NULL
            OR EXISTS (SELECT FROM audit_log_default WHERE at >= start AND at < following);
        BEGIN
            EXECUTE 'CREATE TABLE ' || quote_ident(partition_name) || ' PARTITION OF audit_log FOR VALUES FROM ('
                || quote_literal(start) || ') TO (' || quote_literal(following) || ')';
            made := made + 1;
        EXCEPTION WHEN check_violation THEN  -- an entry of that month has come in between
            CONTINUE;
        END;
    END LOOP;
    RETURN made;
END
$$
"""

# The default partition goes as a whole as well, once nothing in it is young enough to be kept.
TRIM = """
CREATE FUNCTION audit_log_trim(before timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = '2s' AS $$
DECLARE
    partition_name text;
    dropped integer := 0;
BEGIN
    FOR partition_name IN
        SELECT c.relname
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'audit_log'::regclass AND c.relname ~ '^audit_log_[0-9]{4}_[0-9]{2}$'
            AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' <= before
    LOOP
        EXECUTE 'DROP TABLE IF EXISTS ' || quote_ident(partition_name);
        dropped := dropped + 1;
    END LOOP;
    IF EXISTS (SELECT FROM audit_log_default) AND NOT EXISTS (SELECT FROM audit_log_default WHERE at >= before) THEN
        LOCK TABLE audit_log_default IN ACCESS EXCLUSIVE MODE;
        IF NOT EXISTS (SELECT FROM audit_log_default WHERE at >= before) THEN
            TRUNCATE audit_log_default;
            dropped := dropped + 1;
        END IF;
    END IF;
    RETURN dropped;
END
$$
"""

# What runs as the owner must not find objects that its caller has put first on the path, nor be open to everybody.
GUARD = """
DO $$
DECLARE
    signature text;
BEGIN
    FOREACH signature IN ARRAY
        ARRAY['audit_log_prepare(timestamptz, integer)', 'audit_log_trim(timestamptz)']
    LOOP
        EXECUTE 'ALTER FUNCTION ' || signature || ' SET search_path = ' || quote_ident(current_schema()) || ', pg_temp';
        EXECUTE 'REVOKE ALL ON FUNCTION ' || signature || ' FROM PUBLIC';
    END LOOP;
END
$$
"""


def upgrade() -> None:
    """Creates the log, with nothing but its default partition, and what makes and drops partitions."""
    op.execute(verbatim(TABLES))
    op.execute(verbatim(PREPARE))
    op.execute(verbatim(TRIM))
    op.execute(verbatim(GUARD))


def downgrade() -> None:
    """Is not offered: what was done would be forgotten."""
    raise NotImplementedError("restore a backup instead; a downgrade would erase the audit log")
