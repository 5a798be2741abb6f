"""Entering users who have earned an approximate index: what a count of their memories leads to."""

from collections.abc import Callable
from datetime import datetime

import structlog

from db.ann_catalog import name_of
from db.ann_policy import AnnPolicy
from db.ann_registry import AnnRegistry, want
from db.errors import DatabaseError
from db.pool import Database

log = structlog.get_logger(__name__)


class AnnDemand:
    """Hears the counts of db/user_sizes.py and asks maintenance for indexes."""

    def __init__(
        self, database: Database, registry: AnnRegistry, *, policy: AnnPolicy, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._registry = registry
        self._policy = policy
        self._clock = clock

    def counted(self, user_id: str, rows: int) -> None:
        """Asks for an index if so many live memories earn one; the next count asks again where that fails."""
        if not self._policy.enabled or rows < self._policy.min_rows or self._registry.of(user_id) is not None:
            return
        now = self._clock()
        try:
            self._database.write(
                self._database.call(), lambda conn: want(conn, user_id, name_of(user_id), now=now), user_id=user_id
            )
        except DatabaseError as error:
            log.info("ann_index_not_asked_for", error=str(error))
