"""Creating, dropping and rebuilding approximate indexes at an operator's word, and saying what came of it."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from db import ann_counts, ann_indexes
from db.ann_catalog import (
    GLOBAL_NAME,
    NEW,
    BuildProgress,
    IndexInfo,
    IndexState,
    list_indexes,
    name_of,
    progress,
)
from db.ann_indexes import Blueprint
from db.ann_policy import AnnPolicy
from db.ann_registry import want
from db.ann_session import AnnSession
from db.errors import DatabaseError, DatabaseUnavailable
from db.user_sizes import count_live
from db.wall import ACROSS_USERS
from memory_service.index_progress import Bar, Log, follow
from memory_service.text_table import size

NONE_FOR_USERS = "users get no ANN indexes: MEMORY_ANN_INDEX is off, or embeddings have more than 4,000 dimensions"


@dataclass(frozen=True, slots=True)
class Target:
    """An index that something is to happen to."""

    name: str
    user_id: str | None
    rows: int

    def __str__(self) -> str:
        if self.user_id is not None:
            return f"{self.name} of user {self.user_id!r}"
        return f"{self.name} across users" if self.name == GLOBAL_NAME else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes by one command; each method says one line and returns whether it did what was asked."""

    session: AnnSession
    """Holds AnnLock.WORK, except for a dry run."""
    onlooker: AnnSession
    """Asks how far `session` is."""
    policy: AnnPolicy
    dry_run: bool
    say: Callable[[str], None]

    def earned(self) -> list[Target]:
        """Returns the users who have earned an index, largest first, as many as there may be; says who is left out."""
        rows = self.session.query(
            lambda conn: ann_counts.earned(conn, min_rows=self.policy.min_rows), user_id=ACROSS_USERS
        )
        targets = [Target(name_of(user_id), user_id, count) for user_id, count in rows.items()]
        left_out = len(targets) - self.policy.max_indexes
        if left_out > 0:
            self.say(f"no room for the {left_out:,} smallest: MEMORY_ANN_MAX_INDEXES is {self.policy.max_indexes}")
        return targets[: self.policy.max_indexes]

    def existing(self, *, leftovers: bool) -> list[Target]:
        """Returns the indexes of users, with what interrupted builds left where asked."""
        return [
            Target(index.name, index.user_id, self._rows(index.user_id))
            for index in self._indexes().values()
            if not index.is_global and (leftovers or index.user_id is not None)
        ]

    def create(self, target: Target) -> bool:
        """Builds the index unless there is one, or maintenance would drop it again."""
        index = self._indexes().get(target.name)
        if index is not None and index.state is IndexState.READY:
            self.say(f"{target}: there already, nothing to do")
            return True
        if not self._permitted(target):
            return False

        def build() -> None:
            self._enter(target)
            ann_indexes.drop(self.session, target.name)
            ann_indexes.create(self.session, self._blueprint(target))

        return self._build("built", target, build)

    def rebuild(self, target: Target) -> bool:
        """Builds the index anew; searches use the old one until the new one is ready, if it is of the same method."""
        if target.name not in self._indexes():
            self.say(f"{target}: refused: there is none to build anew")
            return False
        if not self._permitted(target):
            return False

        def build() -> None:
            self._enter(target)
            ann_indexes.replace(self.session, self._blueprint(target))

        return self._build("built anew", target, build)

    def drop(self, target: Target) -> bool:
        """Drops the index and the wish for it."""
        if target.name not in self._indexes() and target.user_id is None:
            self.say(f"{target}: there is none, nothing to do")
            return True
        again = self._comes_again(target)
        if self.dry_run:
            self.say(f"{target}: would be dropped{again}")
            return True
        try:
            if (user_id := target.user_id) is not None:
                self.session.query(lambda conn: ann_indexes.forget(conn, user_id), user_id=user_id)
            ann_indexes.drop(self.session, target.name)
        except DatabaseError as error:
            return self._failed(target, error)
        self.say(f"{target}: dropped{again}")
        return True

    def _comes_again(self, target: Target) -> str:
        if target.name == GLOBAL_NAME and self.policy.global_index:
            return "; maintenance builds it again while MEMORY_GLOBAL_SEARCH is on"
        if target.user_id is not None and self.policy.enabled and target.rows >= self.policy.min_rows:
            return f"; maintenance builds it again once the user is searched, having {target.rows:,} memories"
        return ""

    def _permitted(self, target: Target) -> bool:
        if (reason := self._refusal(target)) is not None:
            self.say(f"{target}: refused: {reason}")
        return reason is None

    def _refusal(self, target: Target) -> str | None:
        """Returns why there cannot or must not be such an index."""
        policy = self.policy
        if target.user_id is None:
            return None if policy.global_index else "MEMORY_GLOBAL_SEARCH is off"
        if not policy.enabled:
            return NONE_FOR_USERS
        if target.rows < policy.drop_rows:
            return f"{target.rows:,} memories; maintenance drops it below {policy.drop_rows:,} (MEMORY_ANN_DROP_ROWS)"
        others = [i for i in self._indexes().values() if i.user_id is not None and i.user_id != target.user_id]
        if len(others) >= policy.max_indexes:
            return f"MEMORY_ANN_MAX_INDEXES is {policy.max_indexes}, and as many users have one"
        return None

    def _enter(self, target: Target) -> None:
        if (user_id := target.user_id) is not None:
            now = datetime.now(UTC)
            self.session.query(lambda conn: want(conn, user_id, target.name, now=now), user_id=user_id)

    def _build(self, done: str, target: Target, build: Callable[[], None]) -> bool:
        """Runs `build` under the eyes of the operator; `done` says what was done then."""
        if self.dry_run:
            self.say(f"{target}: would be {done}, {self.policy.options.method} of {target.rows:,} memories")
            return True
        started_at = time.monotonic()
        view = Bar(sys.stderr, target.name) if sys.stderr.isatty() else Log(target.name)
        try:
            follow(build, look=lambda: self._look(target), view=view, cancel=self.session.cancel)
        except DatabaseError as error:
            return self._failed(target, error)
        except KeyboardInterrupt:
            self._clear_up(target)
            raise
        index = self._indexes()[target.name]
        took_s = time.monotonic() - started_at
        self.say(f"{target}: {done}, {index.entries:,} memories in {size(index.bytes)}, {took_s:.1f} s")
        return True

    def _blueprint(self, target: Target) -> Blueprint:
        return Blueprint(name=target.name, user_id=target.user_id, rows=target.rows, options=self.policy.options)

    def _look(self, target: Target) -> BuildProgress | None:
        """Returns how far the build is; HNSW does not tell PostgreSQL how many memories it expects, but we know."""
        seen = self.onlooker.query(progress)
        if seen is not None and seen.done and not seen.total:
            return BuildProgress(seen.phase, seen.done, target.rows)
        return seen

    def _failed(self, target: Target, error: DatabaseError) -> bool:
        if isinstance(error, DatabaseUnavailable):
            raise error
        self.say(f"{target}: failed: {error}")
        self._clear_up(target)
        return False

    def _clear_up(self, target: Target) -> None:
        """Drops what a broken build left, which costs every write; where that fails too, maintenance will."""
        indexes = self._indexes()
        for name in (target.name, target.name + NEW):
            if name in indexes and indexes[name].state is not IndexState.READY:
                with suppress(DatabaseError):
                    ann_indexes.drop(self.session, name)

    def _indexes(self) -> dict[str, IndexInfo]:
        return {index.name: index for index in self.session.query(list_indexes, user_id=ACROSS_USERS)}

    def _rows(self, user_id: str | None) -> int:
        return 0 if user_id is None else self.session.query(lambda conn: count_live(conn, user_id), user_id=user_id)
