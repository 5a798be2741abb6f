"""The error of the embedded PostgreSQL."""

from db.errors import DatabaseError


class EmbeddedPostgresError(DatabaseError):
    """The embedded PostgreSQL cannot run; the message says why and what to do about it."""
