"""The columns of an embedding in memory_entries, live and standby: which there are, and how they change places.

Each family has `embedding`, its norm, its model, the error it failed with, and from 768 dimensions on its bits. The
standby family has the same names behind `standby_`. Adding, renaming and dropping columns touches no row.
"""

from psycopg.sql import SQL, Composed, Identifier, Literal

from db import sign_bits
from db.connection import Connection

STANDBY = "standby_"
FAMILY = ("embedding", "embedding_norm", "bits", "embedding_model", "embedding_error")
CHECK = "memory_entries_embedding_check"
STANDBY_CHECK = "memory_entries_standby_embedding_check"

# As in migration 0001: an embedding is kept in the row's page while that leaves so many bytes for the other columns.
INLINE_BYTES = 8_160 - 600

MISSING = SQL("((standby_embedding IS NULL AND standby_embedding_error IS NULL) OR standby_stale)")
"""A memory's standby embedding is not there, or of an older content."""

# A later VALIDATE reads the table without keeping anybody out. The conditions are those of migration 0005.
ADD = SQL("""/* reembedding_columns.add */
ALTER TABLE memory_entries
    ADD COLUMN standby_embedding halfvec({dimensions}),
    ADD COLUMN standby_embedding_norm double precision,
    ADD COLUMN standby_embedding_model text,
    ADD COLUMN standby_embedding_error text,
    ADD CONSTRAINT {check} CHECK (
        CASE
            WHEN standby_embedding IS NULL THEN standby_embedding_norm IS NULL
            ELSE standby_embedding_norm IS NOT NULL AND standby_embedding_model IS NOT NULL
        END
    ) NOT VALID
""")
ADD_WITH_BITS = SQL("""/* reembedding_columns.add */
ALTER TABLE memory_entries
    ADD COLUMN standby_embedding halfvec({dimensions}),
    ADD COLUMN standby_embedding_norm double precision,
    ADD COLUMN standby_bits bit({dimensions}),
    ADD COLUMN standby_embedding_model text,
    ADD COLUMN standby_embedding_error text,
    ADD CONSTRAINT {check} CHECK (
        CASE
            WHEN standby_embedding IS NULL THEN standby_embedding_norm IS NULL AND standby_bits IS NULL
            ELSE standby_embedding_norm IS NOT NULL AND standby_bits IS NOT NULL AND standby_embedding_model IS NOT NULL
        END
    ) NOT VALID
""")

STORE = SQL("/* reembedding_columns.store */ ALTER TABLE memory_entries ALTER COLUMN {column} SET STORAGE {storage}")


def add(conn: Connection, *, live_dimensions: int, standby_dimensions: int) -> None:
    """Adds the standby family, empty."""
    statement = ADD_WITH_BITS if sign_bits.kept_for(standby_dimensions) else ADD
    conn.execute(statement.format(dimensions=Literal(standby_dimensions), check=Identifier(STANDBY_CHECK)))
    storage = storage_beside(standby_dimensions, live_dimensions=live_dimensions)
    conn.execute(STORE.format(column=Identifier(STANDBY + "embedding"), storage=SQL(storage)))


def storage_alone(dimensions: int) -> str:
    """Returns how the only embedding of a row is stored, as migration 0001 decides it."""
    return "PLAIN" if _bytes(dimensions) <= INLINE_BYTES else "EXTERNAL"


def storage_beside(dimensions: int, *, live_dimensions: int) -> str:
    """Returns how a standby embedding is stored beside a live one.

    PLAIN never leaves the page, and a row of two that do not fit one together would be refused. MAIN leaves it where
    it must, after long texts have.
    """
    if storage_alone(dimensions) == "EXTERNAL":
        return "EXTERNAL"
    # An EXTERNAL one leaves the page before.
    beside = _bytes(live_dimensions) if storage_alone(live_dimensions) == "PLAIN" else 0
    return "PLAIN" if _bytes(dimensions) + beside <= INLINE_BYTES else "MAIN"


def _bytes(dimensions: int) -> int:
    return 2 * dimensions + dimensions // 8 + 16


PRESENT = """/* reembedding_columns.present */
SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('memory_entries') AND attnum > 0 AND NOT attisdropped
"""

RENAME = SQL("/* reembedding_columns.rename */ ALTER TABLE memory_entries RENAME {kind} {name} TO {new_name}")
COLUMN, CONSTRAINT = SQL("COLUMN"), SQL("CONSTRAINT")


def swapped(conn: Connection) -> list[Composed]:
    """Returns the commands by which the families change their names; one may have bits and the other none."""
    present = {name for (name,) in conn.query(PRESENT, {}).fetchall()}
    commands = _crosswise(CONSTRAINT, CHECK, STANDBY_CHECK, {CHECK, STANDBY_CHECK})
    for name in FAMILY:
        commands += _crosswise(COLUMN, name, STANDBY + name, present)
    return commands


def _crosswise(kind: SQL, one: str, other: str, present: set[str]) -> list[Composed]:
    between = f"swapped_{one}"
    steps = ((one, between), (other, one), (between, other))
    there = {*present, between} if one in present else present
    return [
        RENAME.format(kind=kind, name=Identifier(name), new_name=Identifier(new_name))
        for name, new_name in steps
        if name in there
    ]


def dropped(*, live_dimensions: int) -> list[Composed | SQL]:
    """Returns the commands that drop the standby family, its constraint with it, and store the live one as usual."""
    drops = SQL(", ").join(SQL("DROP COLUMN IF EXISTS {}").format(Identifier(STANDBY + name)) for name in FAMILY)
    storage = SQL(storage_alone(live_dimensions))
    return [
        SQL("/* reembedding_columns.drop */ ALTER TABLE memory_entries {}").format(drops),
        STORE.format(column=Identifier("embedding"), storage=storage),
    ]
