"""The errors of the database layer: what callers of `db` catch, and nothing of psycopg.

DatabaseError
├── MemoryNotFound        no such memory of this user
├── MemoryExists          the id is taken
├── MemoryDeleted         the memory is soft-deleted
├── MemoryNotDeleted      the memory is live
├── EmbeddingPending      the memory has no embedding yet
├── EtagMismatch          the memory has changed since the etag was read
├── RequestIdReused       the request id was used for a different request
├── ReplyTooLarge         the rows found hold more text than a reply may
├── InvalidValue          the database refused a value (22xxx)
├── Conflict              serialization failure or deadlock, retried in vain (40001, 40P01)
├── StatementTimeout      statement_timeout, or the caller's deadline (57014)
├── CallCancelled         the caller cancelled (57014)
├── PoolExhausted         no connection became free in time, or the database accepts no more (53xxx)
├── StorageFull           no space left (53100)
├── DatabaseUnavailable   unreachable, restarting or read-only (08xxx, 57P0x, 25006)
├── EmbeddingSpaceChanged the database has moved to another embedding model since the caller looked
├── SchemaMismatch        the schema or embedding space is not the one needed
├── UnsupportedDatabase   PostgreSQL or pgvector is missing or too old
├── ReembeddingConflict   a move to another model is not in the state that a step of it needs
├── ReembeddingBehind     too many memories still lack their other embedding
└── EmbeddedPostgresError the embedded PostgreSQL cannot run (in db/embedded/errors.py; names paths, so for operators)
"""


class DatabaseError(Exception):
    """The root of the database layer's errors; its message may be shown to a client (EmbeddedPostgresError's not)."""


class MemoryNotFound(DatabaseError):
    """The user has no such memory."""


class MemoryExists(DatabaseError):
    """The user has a memory with this id already."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index
        """Which memory of the batch it was, where there was one."""


class MemoryDeleted(DatabaseError):
    """The memory is soft-deleted; restore it first."""


class MemoryNotDeleted(DatabaseError):
    """The memory is not deleted."""


class EmbeddingPending(DatabaseError):
    """The memory has no embedding: it waits for it, or getting it failed."""


class EtagMismatch(DatabaseError):
    """The memory has changed since its etag was read."""


class RequestIdReused(DatabaseError):
    """The request id was used before, for a different request."""


class ReplyTooLarge(DatabaseError):
    """The rows found hold more text than a reply may carry."""

    def __init__(self, *, count: int, size: int, allowed: int) -> None:
        super().__init__(
            f"the {count} results take {size} bytes, a reply at most {allowed}: lower the limit or the view"
        )


class InvalidValue(DatabaseError):
    """The database refused a value."""


class Conflict(DatabaseError):
    """Concurrent transactions collided repeatedly."""


class StatementTimeout(DatabaseError):
    """The statement ran into its time limit and was cancelled."""


class CallCancelled(DatabaseError):
    """The caller cancelled, and so was the statement."""


class PoolExhausted(DatabaseError):
    """No database connection became free in time."""


class StorageFull(DatabaseError):
    """The database has no space left."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached or does not accept writes at the moment."""


class EmbeddingSpaceChanged(DatabaseError):
    """The database has moved to another embedding model: what was embedded for it before means nothing in it now."""


class SchemaMismatch(DatabaseError):
    """The database schema is not the one this version needs; the message names the command to run."""


class UnsupportedDatabase(DatabaseError):
    """PostgreSQL or pgvector is missing or too old; the message says which version is needed."""


class ReembeddingConflict(DatabaseError):
    """A move to another embedding model is not in the state that this step needs; the message says what to do next."""


class ReembeddingBehind(DatabaseError):
    """More memories than the caller allows still lack their other embedding; run the back-fill once more."""

    def __init__(self, *, pending: int, allowed: int) -> None:
        super().__init__(
            f"{pending} memories or more lack their other embedding, and {allowed} may: run the back-fill once more"
        )
        self.pending = pending
        """How many at least."""
