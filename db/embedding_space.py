"""Which embedding space a new connection finds, read so that no connection outlives a move to another one.

A move (db/reembedding_switch.py) locks the table read here before it renames the columns of embeddings, and does not
let go of it before every session of the service has ended that was there at the time. So

* a connection that has read the old space has ended before the columns are renamed: whatever runs on it, and whoever
  holds it, its statements meet the columns of the space it has read;
* a connection that reads while the table is locked waits, and reads the new space.

A connection's space thus never changes, and one look at it before it is lent (Database._take) keeps embeddings of one
model from every row of another. Behind a pooler of transactions a connection outlives the sessions that serve it: there
each transaction begins by asking for its space (wall.ENTER_IN_SPACE), whose table it then keeps from being locked.
"""

import psycopg

from db.connection import Connection
from db.schema import EmbeddingSpace

SPACE = "/* embedding_space.read */ SELECT model, dimensions FROM embedding_space"


def read_space(conn: Connection) -> EmbeddingSpace | None:
    """Returns the space of the database; None in one that is not migrated yet."""
    try:
        row = conn.execute(SPACE).fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    return None if row is None else EmbeddingSpace(*row)
