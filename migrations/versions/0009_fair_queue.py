"""Each user's waiting memories in the order they are due, so that the queue can serve users in turn."""

from alembic import op

revision = "0009"
down_revision = "0008"

INDEX = """
CREATE INDEX embedding_jobs_by_user ON embedding_jobs (user_id, next_attempt_at) WHERE failed_at IS NULL
"""


def upgrade() -> None:
    """Adds the index."""
    op.execute(INDEX)


def downgrade() -> None:
    """Takes it away."""
    op.execute("DROP INDEX embedding_jobs_by_user")
