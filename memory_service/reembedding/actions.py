"""The actions of `memory-service reembed`, each in the state of the database that it needs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from db import reembedding
from db.connection import Connection
from db.errors import ReembeddingBehind, ReembeddingConflict
from db.pool import Database, PoolOptions
from db.reembedding import Phase, Reembedding
from db.reembedding_estimate import estimate
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS
from memory_service.config import Settings
from memory_service.messages.drafts import CALLER_MODEL
from memory_service.provisioning import embedding_space
from memory_service.reembedding import report
from memory_service.reembedding.backfill import Backfill, open_backfill
from memory_service.reembedding.beginning import begin, require_new, target_settings
from memory_service.reembedding.move import Move
from memory_service.reembedding.request import Request
from memory_service.signals import StopRequest
from memory_service.space_settings import adopting

Say = Callable[[str], None]
Confirm = Callable[[str], bool]

T = TypeVar("T")


@contextmanager
def open_database(url: str, settings: Settings) -> Iterator[Database]:
    """Yields a pool for one command; its calls meet whatever space the database is in."""
    options = PoolOptions(
        min_size=1,
        max_size=2,
        timeout_s=settings.pool_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        slow_query_ms=float("inf"),  # whole tables are read
    )
    with closing(Database(url, options)) as database:
        database.open()
        yield database


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """Does what one command line asks, and tells the operator."""

    settings: Settings
    request: Request
    database: Database
    direct_url: str
    """Not through a transaction pooler."""
    live: EmbeddingSpace
    """What the database was in when the command began."""
    say: Say
    confirm: Confirm | None
    """Asks the operator; None where nobody can be asked."""
    stop: StopRequest

    def run(self) -> int:
        """Returns the exit status: 0 when it is done.

        Raises:
            Stopped: The process was asked to stop.
            ConfigurationError, DatabaseError, EmbeddingError: As in reembed_command.run.
        """
        return {
            "move": self._move,
            "dry-run": self._dry_run,
            "status": self._status,
            "switch": self._switch,
            "switch-back": self._switch_back,
            "clean-up": self._clean_up,
            "cancel": self._cancel,
        }[self.request.action]()

    def _move(self) -> int:
        under_way = self._under_way()
        if under_way is not None and under_way.phase is Phase.SWITCHED:
            former = f"the move to {under_way.live} has been switched"
            return self._refuse(f"{former}; end it with --clean-up or --switch-back")
        target = target_settings(self.settings, self.request, under_way)
        if under_way is None and not self._agreed(target):
            return 1
        with self._backfill(target) as backfill:
            backfill.embedding.require_usable()
            if under_way is None:
                begin(
                    target,
                    live_embedder=self.settings.embedder,
                    direct_url=self.direct_url,
                    say=self.say,
                    stop=self.stop,
                )
            move = self._new_move()
            move.back_fill(backfill)
            move.build_indexes()
            move.catch_up(backfill)
            if self.request.no_switch:
                self.say("all is ready; `memory-service reembed --switch` switches")
                return 0
            return self._end(move, backfill, target.embedder)

    def _agreed(self, target: Settings) -> bool:
        """Shows what a new move would do, and asks."""
        require_new(self.settings, target, live=self.live)
        for line in self._plan(target):
            self.say(line)
        return self._confirmed("begin?")

    def _confirmed(self, question: str) -> bool:
        if self.request.yes:
            return True
        if self.confirm is None:
            self.say("refused: nobody is there to ask; --yes goes on without")
            return False
        return self.confirm(question)

    def _plan(self, target: Settings) -> Iterator[str]:
        estimated = self._read(lambda conn: estimate(conn, caller_model=CALLER_MODEL))
        return report.plan(estimated, self.live, embedding_space(target), target.embedder)

    def _dry_run(self) -> int:
        for line in self._plan(target_settings(self.settings, self.request, self._under_way())):
            self.say(line)
        self.say("nothing was changed")
        return 0

    def _status(self) -> int:
        under_way = self._under_way()
        progress = None if under_way is None else self._read(reembedding.progress)
        for line in report.status(self.live, under_way, progress):
            self.say(line)
        return 0

    def _switch(self) -> int:
        under_way = self._require(Phase.BACKFILL)
        with self._backfill(adopting(self.settings, under_way.embedder, under_way.standby)) as backfill:
            move = self._new_move()
            move.catch_up(backfill)
            return self._end(move, backfill, under_way.embedder)

    def _switch_back(self) -> int:
        under_way = self._require(Phase.SWITCHED)
        move = self._new_move()
        if under_way.embedder == "none":
            self.say("what was written since the switch has no embedding of the former model: callers made those")
            return self._end(move, None, under_way.embedder)
        with self._backfill(adopting(self.settings, under_way.embedder, under_way.standby)) as backfill:
            move.build_indexes()
            move.catch_up(backfill)
            return self._end(move, backfill, under_way.embedder)

    def _end(self, move: Move, backfill: Backfill | None, embedder: str) -> int:
        """Switches, either way, and says what is to be done then."""
        try:
            outcome = move.switch(backfill)
        except ReembeddingBehind as error:
            return self._refuse(
                f"{error.pending:,} memories or more would wait for their embedding, more than --max-pending allows; "
                "switch when less is written"
            )
        for line in report.switched(outcome, embedder):
            self.say(line)
        return 0

    def _clean_up(self) -> int:
        under_way = self._require(Phase.SWITCHED)
        return self._drop(f"drop the embeddings of {under_way.standby}? There is no way back then.")

    def _cancel(self) -> int:
        under_way = self._require(Phase.BACKFILL)
        return self._drop(f"drop the embeddings of {under_way.standby} made so far?")

    def _drop(self, question: str) -> int:
        if not self._confirmed(question):
            return 1
        reembedding.clean_up(self.direct_url, on_progress=lambda _what, _share: None)
        self.say("done; the space of the embeddings is free for others once their rows are written or vacuumed")
        return 0

    def _require(self, phase: Phase) -> Reembedding:
        under_way = self._under_way()
        if under_way is None:
            raise ReembeddingConflict("no move to another embedding model is under way")
        if under_way.phase is not phase:
            state = "has not been switched yet" if under_way.phase is Phase.BACKFILL else "has been switched"
            raise ReembeddingConflict(f"the move {state}; see --status")
        return under_way

    def _refuse(self, reason: str) -> int:
        self.say(f"refused: {reason}")
        return 1

    def _under_way(self) -> Reembedding | None:
        return self._read(reembedding.read_reembedding)

    def _read(self, query: Callable[[Connection], T]) -> T:
        return self.database.read(self.database.call(), query, user_id=ACROSS_USERS)

    def _new_move(self) -> Move:
        return Move(
            direct_url=self.direct_url,
            build_memory_mb=self.settings.ann_build_memory_mb,
            max_pending=self.request.max_pending,
            say=self.say,
            stream=sys.stderr,
            clock=lambda: datetime.now(UTC),
            stop=self.stop,
        )

    def _backfill(self, target: Settings) -> AbstractContextManager[Backfill]:
        return open_backfill(target, self.database, batch=self.request.batch, stop=self.stop)
