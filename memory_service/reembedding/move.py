"""A move to another embedding model from its first batch to the switch, as one process takes part in it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from typing import TextIO

from db import reembedding
from db.ann_catalog import BuildProgress
from db.errors import Conflict, ReembeddingBehind
from db.reembedding import SwitchOutcome
from memory_service import index_progress
from memory_service.reembedding.backfill import Backfill
from memory_service.reembedding.patient_embedding import Stopped
from memory_service.reembedding.progress import Meter, view_on

# A round that finds so few is the last one: what is written while it runs is left to the queue.
FEW = 100
# Rounds end when they no longer get shorter: memories are then written as fast as they are embedded.
SHRINKS_BY = 0.7

# While the switch waits for transactions under way, everybody waits behind it.
LOCK_TIMEOUT_S = 2.0
SWITCH_ATTEMPTS = 10
PAUSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The steps; each may be interrupted anywhere and done again."""

    direct_url: str
    """Not through a transaction pooler."""
    build_memory_mb: int | None
    max_pending: int
    """Most memories that may wait in the queue for their embedding right after the switch."""
    say: Callable[[str], None]
    stream: TextIO
    """Where progress is shown if it is a terminal; otherwise the log tells."""
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""
    stop: Event

    def back_fill(self, backfill: Backfill) -> None:
        """Embeds what there is, which may take days; raises what `Backfill.run_round` does."""
        progress = backfill.progress()
        meter, view = Meter(total=progress.total, done=progress.fresh + progress.refused), view_on(self.stream)

        def stored(count: int) -> None:
            meter.add(count)
            view.show(meter)

        started_at = time.monotonic()
        try:
            count = backfill.run_round(stored)
        finally:
            view.end()
        took_s = time.monotonic() - started_at
        self.say(f"embedded {count:,} memories in {took_s:.1f} s ({count / max(took_s, 1e-6):,.0f}/s)")

    def build_indexes(self) -> None:
        """Builds the indexes of the new embeddings.

        Raises:
            Stopped: `stop` was set; the index that was being built is built anew the next time.
            DatabaseError: A build failed.
        """
        terminal = self.stream.isatty()
        view = index_progress.Bar(self.stream, "indexes") if terminal else index_progress.Log("indexes")
        self._build(view)

    def _build(self, view: index_progress.View) -> None:
        started_at = time.monotonic()

        def show(what: str, share: float) -> None:
            if self.stop.is_set():
                raise Stopped
            view.show(BuildProgress(what, round(share * 1_000), 1_000))

        try:
            reembedding.build_indexes(self.direct_url, on_progress=show, build_memory_mb=self.build_memory_mb)
        finally:
            view.end()
        self.say(f"built the indexes in {time.monotonic() - started_at:.1f} s")

    def catch_up(self, backfill: Backfill) -> None:
        """Embeds what was written meanwhile, round after round, until few are left or rounds get no shorter."""
        before = float("inf")
        while FEW < (count := backfill.run_round(lambda _: None)) <= before * SHRINKS_BY:
            before = count

    def switch(self, backfill: Backfill | None) -> SwitchOutcome:
        """Lets searches use the other embeddings, trying again where transactions are in the way.

        Raises:
            ReembeddingBehind: More than `max_pending` memories are still to be embedded.
            Conflict: Transactions were in the way each time.
            Stopped: `stop` was set.
            DatabaseError: Something else is amiss.
        """
        for _ in range(SWITCH_ATTEMPTS - 1):
            try:
                return self._switch()
            except Conflict as error:
                self.say(f"not switched: {error}")
            except ReembeddingBehind:
                if backfill is None:
                    raise
                self.catch_up(backfill)
            if self.stop.wait(PAUSE_S):
                raise Stopped
        return self._switch()

    def _switch(self) -> SwitchOutcome:
        return reembedding.switch(
            self.direct_url, now=self.clock(), max_pending=self.max_pending, lock_timeout_s=LOCK_TIMEOUT_S
        )
