"""What a database is, whether it will do, and how the rows lie in it."""

import os
import random
import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from db import migrate, revisions, sign_bits
from db.errors import SchemaMismatch, UnsupportedDatabase
from db.schema import EmbeddingSpace, SchemaFacts, read_facts, require
from tests.fix_database import DIMENSIONS, MODEL, NewDatabase

SPACE = EmbeddingSpace(MODEL, DIMENSIONS)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
ID_CHARACTERS = 255
CONTENT_BYTES = 64 * 1_024


def facts(**changes: Any) -> SchemaFacts:
    """Returns the facts of a database that will do, with some of them changed."""
    good: dict[str, Any] = {
        "postgres_version": "18.4 (Debian 18.4-1.pgdg13+1)",
        "pgvector_version": "0.8.5",
        "revision": "0002",
        "space": SPACE,
        "pgvector_available": "0.8.5",
    }
    return SchemaFacts(**{**good, **changes})


def test_facts_of_a_migrated_database(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = read_facts(connection)
    assert found.revision == revisions.head()
    assert found.space == SPACE
    assert found.pgvector_version == found.pgvector_available
    require(found, head=revisions.head(), space=SPACE)


def test_facts_of_an_empty_database(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, row_factory=psycopg.rows.dict_row) as connection:
        found = read_facts(connection)
    assert (found.pgvector_version, found.revision, found.space) == (None, None, None)
    assert found.pgvector_available is not None
    with pytest.raises(SchemaMismatch, match="no memory-service schema; run: memory-service migrate"):
        require(found, head=revisions.head(), space=SPACE)


def test_an_older_revision_names_the_command(new_database: NewDatabase) -> None:
    url = new_database(dimensions=None)
    migrate.upgrade(url, SPACE, revision="0001")
    with psycopg.connect(url) as connection:
        found = read_facts(connection)
    with pytest.raises(
        SchemaMismatch, match=rf"at revision 0001.* needs {revisions.head()}; run: memory-service migrate"
    ):
        require(found, head=revisions.head(), space=SPACE)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"revision": "0003"}, SchemaMismatch, "binary is older than the database: .*0002.*0003.*newer memory-service"),
        ({"revision": "ae1027a6acf"}, SchemaMismatch, "another application's schema"),
        (
            {"space": EmbeddingSpace("text-embedding-3-small", 1536)},
            SchemaMismatch,
            r"'text-embedding-3-small' with 1536 dimensions.*'test-model' with 8.*MEMORY_EMBEDDER, .* reembed",
        ),
        ({"space": EmbeddingSpace(MODEL, 9)}, SchemaMismatch, "with 9 dimensions.*with 8 dimensions"),
        ({"space": None}, SchemaMismatch, "no embedding space"),
        ({"postgres_version": "15.13"}, UnsupportedDatabase, r"PostgreSQL 15\.13 is too old: 16 or newer"),
        ({"encoding": "LATIN1"}, UnsupportedDatabase, "keeps text as LATIN1: .* WITH ENCODING 'UTF8'"),
        ({"pgvector_version": "0.8.3"}, UnsupportedDatabase, r"pgvector 0\.8\.3 .*ALTER EXTENSION vector UPDATE"),
        (
            {"pgvector_version": "0.8.3", "pgvector_available": "0.8.3"},
            UnsupportedDatabase,
            "install it on the database server, then",
        ),
        (
            {"pgvector_version": None, "pgvector_available": None},
            UnsupportedDatabase,
            r"pgvector is not installed on the database server: version 0\.8\.4",
        ),
        (
            {"pgvector_version": None, "pgvector_available": "0.7.4"},
            UnsupportedDatabase,
            r"pgvector 0\.7\.4 on the database server is too old",
        ),
    ],
)
def test_what_will_not_do_is_said_with_the_way_out(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        require(facts(**changes), head="0002", space=SPACE)


@pytest.mark.parametrize("version", ["16.0", "18beta2", "19devel", "18.4 (Debian 18.4-1.pgdg13+1)"])
def test_versions_that_will_do(version: str) -> None:
    require(facts(postgres_version=version, pgvector_version="0.8.4"), head="0002", space=SPACE)


def test_an_outdated_pgvector_in_the_database_is_recognized(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("UPDATE pg_extension SET extversion = '0.8.0' WHERE extname = 'vector'")
    with pytest.raises(UnsupportedDatabase, match=r"pgvector 0\.8\.0 .*ALTER EXTENSION vector UPDATE"):
        migrate.upgrade(empty_database_url, SPACE)


INSERT = """
INSERT INTO memory_entries (user_id, id, conversation_id, content, summary, metadata, embedding, embedding_norm,
    embedding_model, importance, version, created_at, updated_at, deleted_at, purge_at{bits})
VALUES (%(user_id)s, %(id)s, %(conversation_id)s, %(content)s, %(summary)s, '{{}}', %(embedding)s, 1, %(model)s, 5, 1,
    %(now)s, %(now)s, %(now)s, %(now)s{signs})
"""


def insert(connection: psycopg.Connection, dimensions: int, *, id_characters: int, content_bytes: int) -> uuid.UUID:
    """Inserts a memory of text that does not compress."""
    register_vector(connection)
    memory_id = uuid.uuid4()
    row = {
        "user_id": four_byte_characters(id_characters),
        "conversation_id": four_byte_characters(id_characters),
        "id": memory_id,
        "content": os.urandom(content_bytes // 2).hex(),
        "summary": os.urandom(content_bytes // 8).hex(),
        "model": os.urandom(100).hex(),
        "embedding": HalfVector(np.random.default_rng(1).standard_normal(dimensions)),
        "now": NOW,
    }
    connection.execute("INSERT INTO users VALUES (%(user_id)s, %(now)s)", row)
    connection.execute("INSERT INTO conversations VALUES (%(user_id)s, %(conversation_id)s, %(now)s)", row)
    has_bits = sign_bits.kept_for(dimensions)
    bits, signs = (", bits", ", binary_quantize(%(embedding)s)") if has_bits else ("", "")
    connection.execute(INSERT.format(bits=bits, signs=signs), row)
    return memory_id


def four_byte_characters(count: int) -> str:
    return "".join(chr(random.randrange(0x10000, 0x10FFFF)) for _ in range(count))  # noqa: S311 - not a secret


# The largest kept inline by 0001: 7,560 bytes of embedding and signs leave room for the rest of the row.
LARGEST_INLINE = 3_550


@pytest.mark.parametrize(("dimensions", "storage"), [(8, "p"), (1536, "p"), (LARGEST_INLINE, "p"), (4000, "e")])
def test_embeddings_are_inline_while_they_fit_the_page(
    new_database: NewDatabase, dimensions: int, storage: str
) -> None:
    url = new_database(dimensions=None)
    migrate.upgrade(url, EmbeddingSpace(MODEL, dimensions))
    with psycopg.connect(url, autocommit=True) as connection:
        attribute = connection.execute(
            "SELECT attstorage FROM pg_attribute WHERE attrelid = 'memory_entries'::regclass AND attname = 'embedding'"
        ).fetchone()
        assert attribute == (storage,)
        insert(connection, dimensions, id_characters=8, content_bytes=16)
        assert (toasted_chunks(connection) > 0) == (storage == "e")


@pytest.mark.parametrize("dimensions", [8, 3072, LARGEST_INLINE, 4000])
def test_the_longest_ids_and_texts_fit(new_database: NewDatabase, dimensions: int) -> None:
    url = new_database(dimensions=None)
    migrate.upgrade(url, EmbeddingSpace(MODEL, dimensions))
    with psycopg.connect(url, autocommit=True) as connection:
        memory_id = insert(connection, dimensions, id_characters=ID_CHARACTERS, content_bytes=CONTENT_BYTES)
        row = connection.execute(
            "SELECT octet_length(content), octet_length(user_id), vector_dims(embedding) FROM memory_entries"
            " WHERE id = %s",
            [memory_id],
        ).fetchone()
        assert row == (CONTENT_BYTES, 4 * ID_CHARACTERS, dimensions)


def toasted_chunks(connection: psycopg.Connection) -> int:
    name = connection.execute(
        "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'memory_entries'::regclass"
    ).fetchone()
    assert name is not None
    table = psycopg.sql.Identifier(*name[0].split("."))
    row = connection.execute(psycopg.sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
    assert row is not None
    return int(row[0])
