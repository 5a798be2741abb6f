"""The actions of `memory-service reembed`, each in the state of the database that it needs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from db import reembedding
from db.ann_session import AnnSession
from db.connection import Connection
from db.errors import Conflict, ReembeddingBehind, ReembeddingConflict
from db.pool import Database, PoolOptions
from db.reembedding import Phase, Reembedding
from db.reembedding_estimate import estimate
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS
from memory_service.backoff import Backoff
from memory_service.config import ConfigurationError, Settings
from memory_service.drafts import CALLER_MODEL
from memory_service.embedding import create_embedder
from memory_service.embedding_chain import assemble_for_bulk
from memory_service.provisioning import embedding_space
from memory_service.reembedding import report
from memory_service.reembedding.backfill import Backfill
from memory_service.reembedding.move import PAUSE_S, Move
from memory_service.reembedding.patient_embedding import PatientEmbedding, Stopped
from memory_service.reembedding.request import Request
from memory_service.signals import StopRequest
from memory_service.space_settings import adopting

Say = Callable[[str], None]
Confirm = Callable[[str], bool]

T = TypeVar("T")

BEGIN_ATTEMPTS = 10
# Requests to a remote provider under way at the same time; the local model keeps a core busy by itself.
REMOTE_REQUESTS = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


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
class Steps:
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
        move = self._under_way()
        if move is not None and move.phase is Phase.SWITCHED:
            return self._refuse(f"the move to {move.live} has been switched; end it with --clean-up or --switch-back")
        target = self._target(move)
        if move is None and not self._agreed(target):
            return 1
        with self._backfill(target) as backfill:
            backfill.embedding.require_usable()
            if move is None:
                self._begin(target)
            steps = self._steps()
            steps.back_fill(backfill)
            steps.build_indexes()
            steps.catch_up(backfill)
            if self.request.no_switch:
                self.say("all is ready; `memory-service reembed --switch` switches")
                return 0
            return self._end(steps, backfill, target.embedder)

    def _target(self, move: Reembedding | None) -> Settings:
        """Returns the settings of the new model, which have to be those of the move under way if there is one."""
        request = self.request
        if move is not None and not request.names_target:
            return adopting(self.settings, move.embedder, move.standby)
        if not request.names_target:
            raise ReembeddingConflict("no move is under way to go on with; name the model: --embedder, --model")
        kind = request.embedder or self.settings.embedder
        if kind == "none":
            raise ConfigurationError(
                "--embedder none: memories cannot be embedded anew without an embedder; callers would have to send all "
                "embeddings again, for which an import into a new database is the way"
            )
        target = self.settings.with_embedder(kind, request.model, request.dimensions)
        if move is not None and (target.embedder, embedding_space(target)) != (move.embedder, move.standby):
            raise ReembeddingConflict(f"a move to {move.standby} is under way: go on with it, or end it with --cancel")
        return target

    def _agreed(self, target: Settings) -> bool:
        """Shows what a new move would do, and asks."""
        if self.live == embedding_space(target):
            raise ReembeddingConflict(f"the embeddings are of {self.live} already: there is nothing to do")
        if self.live != embedding_space(self.settings):
            raise ConfigurationError(
                f"the embeddings are of {self.live}: while a move begins, MEMORY_EMBEDDER, MEMORY_EMBEDDING_MODEL and "
                "MEMORY_EMBEDDING_DIMENSIONS have to name these, so that it is known what leads back"
            )
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

    def _begin(self, target: Settings) -> None:
        def begin(conn: Connection) -> Reembedding:
            space, now = embedding_space(target), datetime.now(UTC)
            return reembedding.begin(conn, target.embedder, space, live_embedder=self.settings.embedder, now=now)

        with AnnSession(self.direct_url) as session:
            for _ in range(BEGIN_ATTEMPTS - 1):
                try:
                    session.query(begin)
                except Conflict as error:
                    self.say(str(error))
                    if self.stop.wait(PAUSE_S):
                        raise Stopped from None
                else:
                    return
            session.query(begin)

    def _dry_run(self) -> int:
        for line in self._plan(self._target(self._under_way())):
            self.say(line)
        self.say("nothing was changed")
        return 0

    def _status(self) -> int:
        move = self._under_way()
        progress = None if move is None else self._read(reembedding.progress)
        for line in report.status(self.live, move, progress):
            self.say(line)
        return 0

    def _switch(self) -> int:
        move = self._require(Phase.BACKFILL)
        target = adopting(self.settings, move.embedder, move.standby)
        with self._backfill(target) as backfill:
            steps = self._steps()
            steps.catch_up(backfill)
            return self._end(steps, backfill, move.embedder)

    def _switch_back(self) -> int:
        move = self._require(Phase.SWITCHED)
        if move.embedder == "none":
            self.say("what was written since the switch has no embedding of the former model: callers made those")
            return self._end(self._steps(), None, move.embedder)
        with self._backfill(adopting(self.settings, move.embedder, move.standby)) as backfill:
            steps = self._steps()
            steps.build_indexes()
            steps.catch_up(backfill)
            return self._end(steps, backfill, move.embedder)

    def _end(self, steps: Move, backfill: Backfill | None, embedder: str) -> int:
        """Switches, either way, and says what is to be done then."""
        try:
            outcome = steps.switch(backfill)
        except ReembeddingBehind as error:
            return self._refuse(
                f"{error.pending:,} memories or more would wait for their embedding, more than --max-pending allows; "
                "switch when less is written"
            )
        for line in report.switched(outcome, embedder):
            self.say(line)
        return 0

    def _clean_up(self) -> int:
        move = self._require(Phase.SWITCHED)
        return self._drop(f"drop the embeddings of {move.standby}? There is no way back then.")

    def _cancel(self) -> int:
        move = self._require(Phase.BACKFILL)
        return self._drop(f"drop the embeddings of {move.standby} made so far?")

    def _drop(self, question: str) -> int:
        if not self._confirmed(question):
            return 1
        reembedding.clean_up(self.direct_url, on_progress=lambda _what, _share: None)
        self.say("done; the space of the embeddings is free for others once their rows are written or vacuumed")
        return 0

    def _require(self, phase: Phase) -> Reembedding:
        move = self._under_way()
        if move is None:
            raise ReembeddingConflict("no move to another embedding model is under way")
        if move.phase is not phase:
            state = "has not been switched yet" if move.phase is Phase.BACKFILL else "has been switched"
            raise ReembeddingConflict(f"the move {state}; see --status")
        return move

    def _refuse(self, reason: str) -> int:
        self.say(f"refused: {reason}")
        return 1

    def _under_way(self) -> Reembedding | None:
        return self._read(reembedding.read_reembedding)

    def _read(self, query: Callable[[Connection], T]) -> T:
        return self.database.read(self.database.call(), query, user_id=ACROSS_USERS)

    def _steps(self) -> Move:
        return Move(
            direct_url=self.direct_url,
            build_memory_mb=self.settings.ann_build_memory_mb,
            max_pending=self.request.max_pending,
            say=self.say,
            stream=sys.stderr,
            clock=lambda: datetime.now(UTC),
            stop=self.stop,
        )

    @contextmanager
    def _backfill(self, target: Settings) -> Iterator[Backfill]:
        """Yields what embeds with the model of these settings."""
        embedder = create_embedder(target)
        if embedder is None:
            raise ConfigurationError("memories cannot be embedded anew without an embedder")
        in_flight = REMOTE_REQUESTS if embedder.cacheable else 1
        with closing(assemble_for_bulk(embedder, target, concurrent_requests=in_flight)) as batching:
            yield Backfill(
                database=self.database,
                embedding=PatientEmbedding(
                    batching=batching,
                    pauses=Backoff(first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S),
                    stop=self.stop,
                ),
                model=target.model,
                batch=self.request.batch,
                in_flight=in_flight,
                stop=self.stop,
            )
