"""Row-level security holds by itself: whatever a statement forgets, whoever logs in, whatever comes next."""

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.types.json import Jsonb

from db import access, erase, lexical_statements, lexical_terms, migrate, requests, surroundings, user_quotas
from db.access import Accesses
from db.ann_registry import want
from db.connection import Connection
from db.embedded import EmbeddedPostgres
from db.errors import CallCancelled, UnsupportedDatabase
from db.lexical_statements import Shape
from db.memory import View
from db.pool import Database
from db.requests import RequestKey
from db.schema import EmbeddingSpace
from db.user_quotas import UserQuota
from db.vectors import to_parameter
from db.wall import ACROSS_USERS, Roles, read_roles
from db.wall_facts import describe, require_wall, wall_of
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, new_memory, read, store, unit
from tests.storage.test_statements import ACROSS_USERS as MADE_ACROSS_USERS
from tests.storage.test_statements import EXCEPTIONS, STATEMENTS

SPACE = EmbeddingSpace("test-model", 8)
MINE, THEIRS = "mine", "theirs"
WRITTEN = ("users", "conversations", "memory_entries", "memory_access", "request_ids", "embedding_jobs", "ann_indexes")
# Set by operators, and only read by a user's own calls.
READ_ONLY = ("user_quotas",)
TABLES = WRITTEN + READ_ONLY

# The same in both users' rows: nothing but user_id tells them apart.
IDS = [UUID(int=number) for number in range(1, 6)]
WAITING_ID = UUID(int=9)
REQUEST_ID = UUID(int=7)


@pytest.fixture(scope="module")
def filled_url(database: Database, module_database_url: str) -> str:
    """The module's database with rows of two users in every table that has a user_id."""
    for user_id in (MINE, THEIRS):
        memories = [
            new_memory(id=id_, conversation_id="c", content=f"{user_id} {id_.int}", summary=f"harbour of {user_id}")
            for id_ in IDS
        ]
        waiting = new_memory(id=WAITING_ID, content=f"{user_id} waits", embedding=None)
        store(database, user_id, *memories, waiting)
        noted = [((user_id, id_.int), Accesses(len(user_id), LATER)) for id_ in IDS]
        key = RequestKey(
            user_id=user_id, request_id=REQUEST_ID, request_hash=user_id.encode(), expires_at=LATER + timedelta(days=1)
        )

        def fill(conn: Connection, user_id: str = user_id, noted: Any = noted, key: RequestKey = key) -> None:
            access.write_accesses(conn, noted)
            requests.once(conn, key, user_id.encode, now=NOW)
            want(conn, user_id, f"index of {user_id}", now=NOW)

        database.write(database.call(), fill, user_id=user_id)

        def set_quota(conn: Connection, user_id: str = user_id) -> None:
            user_quotas.write(conn, user_id, UserQuota(memories=len(user_id)), now=NOW)

        database.write(database.call(), set_quota, user_id=ACROSS_USERS)
    return module_database_url


@pytest.fixture
def raw(filled_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the superuser's in a transaction that is rolled back."""
    with psycopg.connect(filled_url) as connection:
        register_vector(connection)
        yield connection
        connection.rollback()


@pytest.fixture
def roles(raw: psycopg.Connection[Any]) -> Roles:
    """The two roles of the database."""
    found = read_roles(raw)
    assert found is not None
    return found


def take(connection: psycopg.Connection[Any], role: str, user_id: str | None = None) -> None:
    """Takes a role until the transaction ends, and sets the user."""
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
    if user_id is not None:
        connection.execute(sql.SQL("SET LOCAL memory.user_id = {}").format(sql.Literal(user_id)))


def users_in(connection: psycopg.Connection[Any], table: str) -> set[str]:
    """Returns whose rows of a table are seen."""
    rows = connection.execute(sql.SQL("SELECT user_id FROM {}").format(sql.Identifier(table))).fetchall()
    return {user_id for (user_id,) in rows}


@pytest.mark.parametrize("table", TABLES)
def test_a_transaction_sees_the_rows_of_its_user_alone(raw: psycopg.Connection[Any], roles: Roles, table: str) -> None:
    take(raw, roles.one_user)
    assert users_in(raw, table) == set()  # never set
    for user_id, seen in ((MINE, {MINE}), (THEIRS, {THEIRS}), ("", set()), ("min", set()), ("%", set())):
        take(raw, roles.one_user, user_id)
        assert users_in(raw, table) == seen
    take(raw, roles.all_users)
    assert users_in(raw, table) >= {MINE, THEIRS}


@pytest.mark.parametrize("table", READ_ONLY)
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET user_id = user_id", "DELETE FROM {}", "INSERT INTO {} SELECT * FROM {0}"]
)
def test_what_operators_set_for_a_user_is_not_for_its_calls_to_change(
    raw: psycopg.Connection[Any], roles: Roles, table: str, change: LiteralString
) -> None:
    take(raw, roles.one_user, MINE)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        raw.execute(sql.SQL(change.replace("{}", "{0}")).format(sql.Identifier(table)))


@pytest.mark.parametrize("table", WRITTEN)
def test_the_rows_of_others_are_out_of_reach(raw: psycopg.Connection[Any], roles: Roles, table: str) -> None:
    name = sql.Identifier(table)
    take(raw, roles.one_user, MINE)
    for statement in (
        sql.SQL("UPDATE {} SET user_id = user_id WHERE user_id = 'theirs'"),
        sql.SQL("DELETE FROM {} WHERE user_id = 'theirs'"),
        sql.SQL("SELECT FROM {} WHERE user_id = 'theirs' FOR UPDATE"),
    ):
        assert raw.execute(statement.format(name)).rowcount == 0
    others = sql.SQL(", ").join(map(sql.Identifier, stored_columns(raw, table)))
    for statement in (
        sql.SQL("UPDATE {0} SET user_id = 'theirs'"),  # giving one's own away
        sql.SQL("UPDATE {0} SET user_id = 'nobody'"),
        sql.SQL("INSERT INTO {0} (user_id, {1}) SELECT 'theirs', {1} FROM {0}"),
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), raw.transaction():
            raw.execute(statement.format(name, others))


def stored_columns(connection: psycopg.Connection[Any], table: str) -> list[str]:
    """Returns the columns of a table that are neither user_id nor computed."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
        "AND attgenerated = '' AND attname <> 'user_id'",
        [table],
    )
    return [name for (name,) in rows]


def test_nobody_is_not_a_user(raw: psycopg.Connection[Any], roles: Roles) -> None:
    take(raw, roles.one_user, "")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        raw.execute("INSERT INTO users (user_id, created_at) VALUES ('', '2026-01-01')")


@pytest.mark.parametrize("table", ["embedding_cache", "api_keys", "audit_log", "operator_requests"])
def test_what_is_nobodys_own_is_closed_to_calls_for_one_user(
    raw: psycopg.Connection[Any], roles: Roles, table: str
) -> None:
    take(raw, roles.one_user, MINE)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        raw.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(table)))


def test_the_role_of_one_user_may_do_nothing_else(raw: psycopg.Connection[Any], roles: Roles) -> None:
    may = raw.execute(
        """
        SELECT c.relname, array_agg(privilege ORDER BY privilege)
        FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
            AS privilege
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind NOT IN ('i', 'I', 'c')
            AND has_table_privilege(%s, c.oid, privilege)
        GROUP BY c.relname
        """,
        [roles.one_user],
    )
    # TRUNCATE knows no policies. Partitions neither: those of the audit log have none, and nobody is let near them.
    everything = ["DELETE", "INSERT", "SELECT", "UPDATE"]
    assert dict(may.fetchall()) == {
        **dict.fromkeys(WRITTEN, everything),
        **{table: ["SELECT"] for table in READ_ONLY},
        "alembic_version": ["SELECT"],
        "embedding_space": ["SELECT"],
    }
    definers = raw.execute(
        "SELECT has_function_privilege(%s, oid, 'EXECUTE') FROM pg_proc "
        "WHERE prosecdef AND pronamespace = 'public'::regnamespace",
        [roles.one_user],
    ).fetchall()
    assert definers == [(False,), (False,)]


def test_other_ways_to_the_rows_end_at_the_wall(raw: psycopg.Connection[Any], roles: Roles) -> None:
    raw.execute("ANALYZE memory_entries")
    assert raw.execute("SELECT FROM pg_stats WHERE tablename = 'memory_entries'").rowcount > 0
    take(raw, roles.one_user, MINE)
    # The most common values of a column are values of rows.
    assert raw.execute("SELECT FROM pg_stats WHERE tablename = 'memory_entries'").rowcount == 0
    with raw.cursor() as cursor, cursor.copy("COPY memory_entries (user_id) TO STDOUT") as copied:
        assert {user_id for (user_id,) in copied.rows()} == {MINE}
    raw.execute("SET LOCAL row_security = off")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), raw.transaction():
        raw.execute("SELECT FROM memory_entries")
    raw.execute("SET LOCAL row_security = on")
    for statement in (b"TRUNCATE memory_entries", b"ALTER TABLE memory_entries DISABLE ROW LEVEL SECURITY"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), raw.transaction():
            raw.execute(statement)
    with (
        pytest.raises(psycopg.errors.FeatureNotSupported),
        raw.cursor() as cursor,
        cursor.copy("COPY users (user_id, created_at) FROM STDIN"),
    ):
        pass


def test_every_table_with_a_user_id_is_protected(filled_url: str) -> None:
    assert wall_of(filled_url).unprotected == ()
    with psycopg.connect(filled_url) as connection:
        rows = connection.execute(
            "SELECT tablename, array_agg(policyname::text ORDER BY policyname) FROM pg_policies GROUP BY 1"
        ).fetchall()
        # Policies add up: one more would let somebody in.
        assert dict(rows) == {table: ["all_users", "one_user"] for table in TABLES} | {"audit_log": ["all_users"]}
        connection.execute("CREATE TABLE forgotten (user_id text, note text)")
        connection.execute("CREATE TABLE unforced (user_id text); ALTER TABLE unforced ENABLE ROW LEVEL SECURITY")
        connection.commit()
        try:
            assert wall_of(filled_url).unprotected == ("forgotten", "unforced")
        finally:
            connection.execute("DROP TABLE forgotten, unforced")


# Each condition on the user, however it is written. Values that are inserted stay.
CONDITION = re.compile(r"(?:\w+\.)?user_id = (?:%\(user_id\)s|'u'|\w+\.user_id)")
# Found by an index that PostgreSQL does not read behind the wall, and so run across users: see the last test.
ACROSS_BY_DESIGN = {"lexical.search"}
# Not for the role of one user at all: see READ_ONLY.
BY_OPERATORS = {"user_quotas.reset", "erase.quota"}
NAMES = sorted(
    name
    for name, forms in STATEMENTS.items()
    if name not in EXCEPTIONS.keys() | MADE_ACROSS_USERS | ACROSS_BY_DESIGN | BY_OPERATORS
    and any(map(CONDITION.search, forms))
)
FORMS = 2
KEYED = Shape(frozenset({"conversation_id"}), None, exclude=True, phrases=False, prefixes=True)
TEMPLATE = re.compile(r"(?<!')\{\w*\}(?!')")
# Made of templates by functions that their modules keep to themselves.
MADE = {
    "lexical.terms": [lexical_terms.statement(prefixes=prefixes).decode() for prefixes in (False, True)],
    "lexical.search_keyed": [lexical_statements.search_keyed(KEYED).decode()],
    "surroundings.around": [surroundings._statement(view).decode() for view in View],  # noqa: SLF001 - see above
    "erase.left": [erase.LEFT.format(sql.Identifier(table)).as_string(None) for table in TABLES],
}


def forms_of(name: str) -> list[str]:
    """Returns some forms of a statement, evenly chosen; without those that want more dimensions, for their bits."""
    known = MADE.get(name) or [form for form in STATEMENTS[name] if not TEMPLATE.search(form)]
    forms = sorted(form for form in known if not re.search(r"\bbits\b", form))
    return forms[:: -(-len(forms) // FORMS)]


def without_user(form: str) -> Iterator[str]:
    """Yields the statement with each of its conditions on the user dropped, and with all of them dropped."""
    for match in CONDITION.finditer(form):
        yield form[: match.start()] + "true" + form[match.end() :]
    yield CONDITION.sub("true", form)


PARAMETERS: dict[str, Any] = {
    "user_id": MINE,
    "id": IDS[0],
    "ids": IDS,
    "users": [MINE, THEIRS],
    "conversation_id": "c",
    "conversation_ids": ["c", "d"],
    "request_id": REQUEST_ID,
    "request_hash": b"hash",
    "response": b"response",
    "exclude": UUID(int=99),
    "after_id": UUID(int=99),
    "after_created_at": LATER,
    "after": "",
    "first": UUID(int=0),
    "start": UUID(int=0),
    "now": LATER,
    "purge_at": PURGE_AT,
    "expires_at": PURGE_AT,
    "leased_until": NOW,
    "created_at": NOW,
    "unit": to_parameter(unit()),
    "norm": 1.0,
    "embedding": to_parameter(unit(1)),
    "embedding_norm": 1.0,
    "embedding_model": "test-model",
    "content": "changed",
    "summary": "changed",
    "metadata": Jsonb({}),
    "importance": 7,
    "importances": [7] * len(IDS),
    "successors": IDS[::-1],
    "language": "english",
    "contents": [f"{THEIRS} 1", f"{MINE} 1"],
    "embed_texts": ["text"] * len(IDS),
    "error": "refused",
    "min_score": -1.0,
    "text": "harbour theirs",
    "phrases": [],
    "prefixes": ["thei"],
    **dict.fromkeys(("limit", "candidates", "walk", "rows", "reach", "max_terms", "max_lexemes", "sample_rows"), 100),
    **dict.fromkeys(("max_text_bytes", "up_to", "count_up_to", "max_lexeme_bytes"), 1_000),
    "exact_rows": 0,
    **dict.fromkeys(("memories", "bytes"), 1_000),
}
OF_A_STATEMENT: dict[str, dict[str, Any]] = {
    "insert.one": {"id": UUID(int=50)},
    "bulk_insert.rows": {
        "ids": [UUID(int=50)],
        "conversation_ids": ["c"],
        "contents": ["new"],
        "summaries": [""],
        "metadata": [Jsonb({})],
        "embeddings": [to_parameter(unit())],
        "norms": [1.0],
        "models": ["test-model"],
        "importances": [5],
        "times": [NOW],
        "languages": ["english"],
    },
    "embedding_jobs.enqueue": {"ids": IDS[:1], "embed_texts": ["text"]},
    "embedding_jobs.give_up": {"id": WAITING_ID},
    "erase.lock_conversations": {"start": ""},
    "erase.empty_conversations": {"ids": ["c"]},
    "lexical.terms": {"language": "pg_catalog.english"},
    "lexical.search_keyed": {
        "terms": ["harbour", "their*"],
        "at_least": [2, 0],
        "lexemes": ["harbour"],
        "starts": ["their"],
        "stems": [None],
        "also": IDS,
        "most_rows": 100,
        "row_count": 10,
        "average_length": 4.0,
        "k1": 1.2,
        "b": 0.75,
    },
}

EVERYTHING = b"""
SELECT to_jsonb(u), (SELECT jsonb_agg(to_jsonb(t) ORDER BY t) FROM conversations t WHERE t.user_id = u.user_id),
    (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.id) FROM memory_entries t WHERE t.user_id = u.user_id),
    (SELECT jsonb_agg(to_jsonb(t) ORDER BY t) FROM memory_access t WHERE t.user_id = u.user_id),
    (SELECT jsonb_agg(to_jsonb(t) ORDER BY t) FROM request_ids t WHERE t.user_id = u.user_id),
    (SELECT jsonb_agg(to_jsonb(t) ORDER BY t) FROM embedding_jobs t WHERE t.user_id = u.user_id),
    (SELECT jsonb_agg(to_jsonb(t) ORDER BY t) FROM ann_indexes t WHERE t.user_id = u.user_id),
    (SELECT jsonb_agg(to_jsonb(t) ORDER BY t) FROM user_quotas t WHERE t.user_id = u.user_id)
FROM users u WHERE u.user_id = 'theirs'
"""


@contextmanager
def undone(connection: psycopg.Connection[Any]) -> Iterator[None]:
    with connection.transaction(force_rollback=True):
        yield


def outcome(connection: psycopg.Connection[Any], role: str, name: str, statement: str, *, alone: bool) -> Any:
    """Returns what a statement returns for MINE, in a world without the other user if `alone`.

    And whether it left the rows of the other user alone.
    """
    with undone(connection):
        if alone:
            connection.execute("DELETE FROM users WHERE user_id = 'theirs'")
            connection.execute("DELETE FROM ann_indexes WHERE user_id = 'theirs'")
        before = connection.execute(EVERYTHING).fetchall()
        take(connection, role, MINE)
        cursor = connection.execute(statement.encode(), PARAMETERS | OF_A_STATEMENT.get(name, {}))
        returned = sorted(map(repr, cursor.fetchall())) if cursor.description else cursor.rowcount
        connection.execute("SET LOCAL ROLE NONE")
        return returned, connection.execute(EVERYTHING).fetchall() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_that_forgets_its_user_meets_the_wall(
    raw: psycopg.Connection[Any], roles: Roles, name: str
) -> None:
    for form in forms_of(name):
        for forgetful in without_user(form):
            # As if the other user did not exist: neither rows nor counts tell of it, and no row of it changes.
            assert outcome(raw, roles.one_user, name, forgetful, alone=False) == outcome(
                raw, roles.one_user, name, forgetful, alone=True
            ), forgetful


@pytest.mark.parametrize(
    "name", ["search.table", "search.candidates", "search.ann", "recent.page", "fetch.one", "stats.user", "erase.count"]
)
def test_without_the_wall_the_same_statements_meet_the_other_user(
    raw: psycopg.Connection[Any], roles: Roles, name: str
) -> None:
    form = forms_of(name)[0]
    forgetful = CONDITION.sub("true", form)
    assert outcome(raw, roles.all_users, name, forgetful, alone=False) != outcome(
        raw, roles.all_users, name, forgetful, alone=True
    )


PARAMETER = re.compile(r"%\((\w+)\)[sb]")


def scans(connection: psycopg.Connection[Any], statement: str) -> list[tuple[str, str, str]]:
    """Returns how a prepared statement reads its tables: each node, its index, and what it looks for there."""
    names: dict[str, int] = {}
    text = PARAMETER.sub(lambda match: f"${names.setdefault(match[1], len(names) + 1)}", statement).replace("%%", "%")
    connection.execute("SET LOCAL enable_seqscan = off")
    row = connection.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {text}".encode()).fetchone()
    assert row is not None
    return sorted(scans_below(row[0][0]["Plan"]))


def scans_below(node: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    if node["Node Type"].endswith("Scan"):
        # Behind the wall the same value is written with its type.
        looked_for = re.sub(r"\((\$\d+)\)::text", r"\1", node.get("Index Cond", "")).replace(' COLLATE "C"', "")
        yield node["Node Type"], node.get("Index Name", node.get("Relation Name", "")), looked_for
    for inner in node.get("Plans", []):
        yield from scans_below(inner)


@pytest.mark.parametrize("name", NAMES)
def test_statements_are_planned_as_without_the_wall(raw: psycopg.Connection[Any], roles: Roles, name: str) -> None:
    for form in forms_of(name):
        without = scans(raw, form)
        take(raw, roles.one_user, MINE)
        behind = scans(raw, form)
        raw.execute("SET LOCAL ROLE NONE")
        assert behind == without, form


def whose(conn: psycopg.Connection[Any]) -> tuple[Any, ...] | None:
    """Returns the role and the user that a session is left with."""
    return conn.execute("SELECT current_role = session_user, current_setting('memory.user_id', true)").fetchone()


NOBODY = {(True, None), (True, "")}


@pytest.mark.parametrize("prepared_statements", [True, False], ids=["session", "pooler"])
def test_the_user_ends_with_the_transaction(
    filled_url: str, open_database: OpenDatabase, *, prepared_statements: bool
) -> None:
    database = open_database(filled_url, max_size=1, prepared_statements=prepared_statements)

    def left() -> tuple[Any, ...] | None:
        # Without the wall: what the next transaction would begin with.
        with database._pool.connection() as conn:  # noqa: SLF001 - nobody else may see it
            return whose(conn)

    def failing(conn: Connection) -> None:
        with conn.transaction():
            conn.query("/* test.wrong */ SELECT 1 / 0", {})

    def rolled_back(conn: Connection) -> None:
        with conn.transaction() as transaction:
            conn.query("/* test.one */ SELECT 1", {})
            raise psycopg.Rollback(transaction)

    def seen(conn: Connection) -> set[str]:
        with conn.transaction():
            conn.query("/* test.one */ SELECT 1", {})
            within = {user_id for (user_id,) in conn.query("/* test.users */ SELECT user_id FROM users", {})}
        return within | {user_id for (user_id,) in conn.query("/* test.users */ SELECT user_id FROM users", {})}

    for _ in range(7):  # from the sixth time on statements are prepared
        assert database.read(database.call(), seen, user_id=MINE) == {MINE}
        assert left() in NOBODY
        assert database.read(database.call(), seen, user_id=THEIRS) == {THEIRS}
        assert database.read(database.call(), seen, user_id=ACROSS_USERS) >= {MINE, THEIRS}
        database.read(database.call(), rolled_back, user_id=MINE)
        assert left() in NOBODY
    for fail in (failing, lambda conn: conn.query("/* test.wrong */ SELECT 1 / 0", {})):
        with pytest.raises(Exception, match="refused a value"):
            database.read(database.call(), fail, user_id=MINE)
        assert left() in NOBODY
    call = database.call()
    threading.Timer(0.05, call.cancel).start()
    with pytest.raises(CallCancelled):
        database.read(call, lambda conn: conn.query("/* test.slow */ SELECT pg_sleep(5)", {}), user_id=MINE)
    assert left() in NOBODY


def test_a_pooler_s_session_keeps_nothing_of_the_wall(filled_url: str, open_database: OpenDatabase) -> None:
    database = open_database(filled_url, max_size=1, prepared_statements=False)
    store(database, "over a pooler", new_memory(id=IDS[0]))
    assert read(database, "over a pooler", IDS[0]).user_id == "over a pooler"
    with database._pool.connection() as conn:  # noqa: SLF001 - nobody else may see it
        assert conn.execute("SELECT FROM pg_prepared_statements").rowcount == 0
        assert whose(conn) in NOBODY


AWKWARD = "it's \\ 100% {me} %s"


@pytest.mark.parametrize("prepared_statements", [True, False], ids=["session", "pooler"])
def test_settings_for_citus_are_literal(
    filled_url: str, open_database: OpenDatabase, *, prepared_statements: bool
) -> None:
    # Without Citus its setting is one that nobody knows of, which PostgreSQL lets through.
    database = open_database(filled_url, max_size=1, prepared_statements=prepared_statements)

    def seen(conn: Connection) -> list[set[tuple[Any, ...]]]:
        assert conn.roles is not None
        conn.roles = replace(conn.roles, on_citus=True)
        alone = set(conn.query("/* test.users */ SELECT user_id FROM users", {}).fetchall())
        with pytest.raises(psycopg.DataError):
            conn.query("/* test.wrong */ SELECT 1 / 0", {})
        with conn.transaction():
            together = set(conn.query("/* test.users */ SELECT user_id FROM users", {}).fetchall())
        [propagated] = conn.query("/* test.citus */ SELECT current_setting('citus.propagate_set_commands')", {})
        assert propagated == ("local",)
        return [alone, together]

    for user_id in (MINE, AWKWARD):
        store(database, user_id, new_memory())
        assert database.read(database.call(), seen, user_id=user_id) == [{(user_id,)}] * 2


@pytest.mark.parametrize("prepared_statements", [True, False], ids=["session", "pooler"])
def test_it_can_be_switched_off(filled_url: str, open_database: OpenDatabase, *, prepared_statements: bool) -> None:
    database = open_database(filled_url, row_level_security=False, prepared_statements=prepared_statements)

    def seen(conn: Connection) -> set[str]:
        return {user_id for (user_id,) in conn.query("/* test.users */ SELECT user_id FROM users", {})}

    assert {MINE, THEIRS} <= database.read(database.call(), seen, user_id=MINE)


def test_finding_by_words_returns_nothing_of_a_row(raw: psycopg.Connection[Any]) -> None:
    shape = Shape(frozenset(), None, exclude=False, phrases=False, prefixes=True)
    parameters = {
        "user_id": MINE,
        "finders": "",
        "at_least": [0],
        "most_rows": 10,
        "limit": 10,
        "max_terms": 1,
        "k1": 1.2,
        "b": 0.75,
        "row_count": 1,
        "average_length": 1.0,
        "terms": ["harbour"],
        "also": [],
        "lexemes": ["harbour"],
        "starts": ["harb"],
        "stems": ["harbour"],
    }
    types: set[str] = set()
    for all_found in (False, True):
        cursor = raw.execute(lexical_statements.search(shape, all_found=all_found, narrowed=False), parameters)
        types |= {column.type_display for column in cursor.description or ()}
    # Counts, ids, scores, and the terms that were asked for with their frequencies.
    assert types == {"int8", "uuid[]", "float8[]", "text[]", "int8[]"}


@pytest.fixture
def owner(empty_database_url: str) -> Iterator[Callable[[str], str]]:
    """A function making a role, with these attributes, that owns the database; it returns the role's URL."""
    name = f"owner_{uuid.uuid4().hex[:12]}"
    database = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]))
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:

        def make(attributes: str) -> str:
            superuser.execute("CREATE EXTENSION IF NOT EXISTS vector")
            superuser.execute(f"CREATE ROLE {name} LOGIN {attributes}".encode())
            superuser.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(name)))
            return psycopg.conninfo.make_conninfo(empty_database_url, user=name)

        yield make
        superuser.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(database))
        superuser.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


@pytest.fixture
def roles_dropped(empty_database_url: str) -> Iterator[None]:
    """Drops the roles of the test's own database afterwards: they are the cluster's."""
    yield
    database = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        for name in (f"memory_service_{database}", f"memory_maintenance_{database}"):
            if superuser.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).rowcount:
                superuser.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.mark.usefixtures("roles_dropped")
def test_the_owner_sees_nothing_by_itself(owner: Callable[[str], str], open_database: OpenDatabase) -> None:
    url = owner("CREATEROLE")
    migrate.upgrade(url, SPACE)
    database = open_database(url)
    store(database, MINE, new_memory(id=IDS[0]))
    store(database, THEIRS, new_memory(id=IDS[0]))
    assert read(database, MINE, IDS[0]).user_id == MINE
    facts = wall_of(url)
    require_wall(facts)
    assert not facts.login_sees_all
    assert "sees no user's rows by itself" in describe(facts)
    with psycopg.connect(url) as connection:
        assert users_in(connection, "memory_entries") == set()
        connection.execute("SET LOCAL memory.user_id = 'mine'")
        assert users_in(connection, "memory_entries") == set()


class Namesakes:
    """Databases of a name that the test chooses, one after the other."""

    def __init__(self, postgres: EmbeddedPostgres, superuser: psycopg.Connection[Any]) -> None:
        self.name = f"again_{uuid.uuid4().hex[:12]}"
        self.former = f"{self.name}_former"
        self._postgres = postgres
        self._superuser = superuser

    def run(self, statement: str) -> None:
        """Runs a statement on databases and roles."""
        self._superuser.execute(statement.format(name=self.name, former=self.former).encode())

    def roles(self, name: str) -> Roles | None:
        """Returns the roles of the wall that stands in one of them, migrated if need be."""
        url = self._postgres.database_url(name)
        migrate.upgrade(url, SPACE)
        facts = wall_of(url)
        require_wall(facts)
        return facts.roles


DROP_ROLES = "DROP ROLE memory_service_{name}, memory_maintenance_{name}"


@pytest.fixture
def namesakes(postgres: EmbeddedPostgres) -> Iterator[Namesakes]:
    """Dropped afterwards, with their roles."""
    with psycopg.connect(postgres.database_url("postgres"), autocommit=True) as superuser:
        databases = Namesakes(postgres, superuser)
        databases.run("CREATE DATABASE {name}")
        yield databases
        numbers = superuser.execute(
            "SELECT oid FROM pg_database WHERE starts_with(datname, %s)", [databases.name]
        ).fetchall()
        databases.run("DROP DATABASE IF EXISTS {name}")
        databases.run("DROP DATABASE IF EXISTS {former}")
        for name in (databases.name, *(str(number) for (number,) in numbers)):
            databases.run(f"DROP ROLE IF EXISTS memory_service_{name}, memory_maintenance_{name}")


def test_a_database_made_again_has_roles_again(namesakes: Namesakes) -> None:
    roles = Roles(f"memory_service_{namesakes.name}", f"memory_maintenance_{namesakes.name}")
    assert namesakes.roles(namesakes.name) == roles
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        namesakes.run(DROP_ROLES)
    namesakes.run("DROP DATABASE {name}")
    namesakes.run("CREATE DATABASE {name}")
    assert namesakes.roles(namesakes.name) == roles  # those that were left
    namesakes.run("DROP DATABASE {name}")
    namesakes.run(DROP_ROLES)  # as docs/operations.md says
    namesakes.run("CREATE DATABASE {name}")
    assert namesakes.roles(namesakes.name) == roles


def test_roles_in_use_by_a_database_of_another_name_are_left_to_it(namesakes: Namesakes) -> None:
    former = namesakes.roles(namesakes.name)
    namesakes.run("ALTER DATABASE {name} RENAME TO {former}")
    namesakes.run("CREATE DATABASE {name}")
    roles = namesakes.roles(namesakes.name)
    assert roles is not None
    assert former is not None
    assert {roles.one_user, roles.all_users}.isdisjoint({former.one_user, former.all_users})
    assert namesakes.roles(namesakes.former) == former


@pytest.mark.usefixtures("roles_dropped")
def test_a_role_that_may_not_create_roles_is_told_what_an_administrator_runs(
    owner: Callable[[str], str], empty_database_url: str
) -> None:
    url = owner("NOCREATEROLE")
    with pytest.raises(UnsupportedDatabase, match="have an administrator run") as told:
        migrate.upgrade(url, SPACE)
    with psycopg.connect(empty_database_url, autocommit=True) as administrator:
        administrator.execute(str(told.value).partition("migrate again: ")[2].encode())
    assert migrate.upgrade(url, SPACE)[0] == "0008"
    require_wall(wall_of(url))


@pytest.mark.usefixtures("roles_dropped")
def test_another_login_is_told_what_it_lacks(
    owner: Callable[[str], str], empty_database_url: str, open_database: OpenDatabase
) -> None:
    migrate.upgrade(empty_database_url, SPACE)
    url = owner("NOINHERIT")
    with pytest.raises(UnsupportedDatabase, match="may not take the roles") as told:
        require_wall(wall_of(url))
    with psycopg.connect(empty_database_url, autocommit=True) as administrator:
        administrator.execute(str(told.value).partition("run: ")[2].encode())
    require_wall(wall_of(url))
    database = open_database(url)
    store(database, MINE, new_memory(id=IDS[0]))
    assert read(database, MINE, IDS[0]).user_id == MINE


@pytest.mark.usefixtures("roles_dropped")
def test_a_login_that_sees_everything_is_reported(owner: Callable[[str], str], empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, SPACE)
    facts = wall_of(empty_database_url)
    assert facts.login_sees_all
    assert "superuser" in describe(facts)
    url = owner("")
    assert facts.roles is not None
    with psycopg.connect(empty_database_url, autocommit=True) as administrator:
        for role in (facts.roles.one_user, facts.roles.all_users):
            grant = sql.SQL("GRANT {} TO {} WITH INHERIT TRUE, SET TRUE")
            login = str(psycopg.conninfo.conninfo_to_dict(url)["user"])
            administrator.execute(grant.format(sql.Identifier(role), sql.Identifier(login)))
    assert wall_of(url).login_sees_all
