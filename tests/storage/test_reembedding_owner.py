"""A move by a role that owns the database and is no superuser: row-level security hides every row from it."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from db import migrate
from db.ann_catalog import name_of
from db.ann_indexes import create
from db.ann_registry import want
from db.ann_session import AnnSession
from db.errors import ReembeddingBehind, SchemaMismatch
from db.wall import ACROSS_USERS
from tests.storage.clustered import blueprint
from tests.storage.conftest import OpenDatabase
from tests.storage.reembedding_calls import (
    NEW,
    OLD,
    begin,
    build,
    clean_up,
    columns_of,
    embedding_of,
    memory_of,
    reconnect,
    run_round,
    switch,
)
from tests.storage.sample_memories import NOW, read, store

OWNER = "owner"


@pytest.fixture
def owners_url(empty_database_url: str) -> Iterator[str]:
    """The URL of a migrated database for the ordinary role that owns it."""
    name = f"owner_{uuid.uuid4().hex[:12]}"
    database = str(psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"])
    roles = [name, f"memory_service_{database}", f"memory_maintenance_{database}"]
    with psycopg.connect(empty_database_url, autocommit=True) as superuser:
        superuser.execute("CREATE EXTENSION vector")
        superuser.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE").format(sql.Identifier(name)))
        superuser.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(*map(sql.Identifier, (database, name))))
        url = psycopg.conninfo.make_conninfo(empty_database_url, user=name)
        migrate.upgrade(url, OLD)
        yield url
        superuser.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(database)))
        for role in reversed(roles):
            superuser.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_an_ordinary_owner_can_move_its_database(owners_url: str, open_database: OpenDatabase) -> None:
    database = open_database(owners_url, max_size=1)
    texts = [f"memory {number}" for number in range(30)]
    memories = [memory_of(text, OLD) for text in texts]
    store(database, OWNER, *memories)
    with AnnSession(owners_url) as session:
        create(session, blueprint(OWNER))
        session.query(lambda conn: want(conn, OWNER, name_of(OWNER), now=NOW), user_id=ACROSS_USERS)
    begin(database)
    assert run_round(database) == len(texts)
    named: set[str] = set()
    build(owners_url, lambda name, _: named.add(name))
    assert name_of(OWNER) + "_standby" in named
    late = memory_of("late", OLD)
    store(database, OWNER, late)
    with pytest.raises(ReembeddingBehind):
        switch(owners_url)

    outcome = switch(owners_url, max_pending=1)
    assert (outcome.pending, outcome.terminated) == (1, 1)
    reconnect(database)
    found = read(database, OWNER, memories[7].id)
    assert found.embedding is not None
    assert (found.embedding.unit == embedding_of(texts[7], NEW).unit).all()
    assert read(database, OWNER, late.id).embedding is None
    clean_up(owners_url)
    assert "standby_embedding" not in columns_of(owners_url)


def test_sessions_of_a_stronger_role_keep_it_from_switching(
    owners_url: str, empty_database_url: str, open_database: OpenDatabase
) -> None:
    database = open_database(owners_url, max_size=1)
    store(database, OWNER, memory_of("one", OLD))
    begin(database)
    run_round(database)
    build(owners_url)
    with (
        psycopg.connect(empty_database_url, application_name="memory-service"),
        pytest.raises(SchemaMismatch, match="run it as the role they log in with"),
    ):
        switch(owners_url)
    assert switch(owners_url).pending == 0
