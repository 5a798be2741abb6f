"""Keeps the approximate indexes as they should be: a thread in every process, of which one in the database works."""

import threading
import time
from dataclasses import dataclass

import structlog

from db import ann_counts, ann_indexes
from db.ann_catalog import list_indexes, wanted_users
from db.ann_counts import AnnCounts
from db.ann_indexes import Blueprint
from db.ann_policy import Act, AnnPolicy, Step, steps
from db.ann_session import AnnLock, AnnSession
from db.errors import DatabaseError, DatabaseUnavailable, StorageFull
from db.wall import ACROSS_USERS

log = structlog.get_logger(__name__)

# Between two builds, for a command to get its turn.
BREATH_S = 1.0
# What failed is tried again after this, and twice as long after each further failure.
FIRST_RETRY_S = 60.0
MAX_RETRY_S = 3_600.0
# A build stops within milliseconds of being cancelled; a server that does not answer must not hold up a shutdown.
CLOSE_LIMIT_S = 5.0
CANCEL_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class _Failure:
    times: int
    retry_at: float
    """time.monotonic()"""
    parallel: bool


class AnnMaintenance:
    """Builds, repairs and drops indexes every `interval_s` seconds while its session holds the leader's lock.

    It works on the session that holds the lock: whoever loses the lock has lost the build as well, and two leaders
    never work at the same time. A leader that is killed leaves an invalid index, which the next one clears up.
    """

    def __init__(self, url: str, policy: AnnPolicy, *, interval_s: float, build_memory_mb: int | None = None) -> None:
        self._url = url
        self._policy = policy
        self._interval_s = interval_s
        self._build_memory_mb = build_memory_mb
        self._counts = AnnCounts()
        self._failures: dict[tuple[Act, str], _Failure] = {}
        self._session: AnnSession | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ann-maintenance", daemon=True)

    def start(self) -> None:
        """Starts with a first round."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and lets another process lead; cancels a build under way."""
        self._closing.set()
        deadline_at = time.monotonic() + CLOSE_LIMIT_S
        # Again and again: a request that arrives between two statements stops neither.
        while self._thread.is_alive() and time.monotonic() < deadline_at:
            if (session := self._session) is not None:
                session.cancel()
            self._thread.join(CANCEL_EVERY_S)
        if self._thread.is_alive():
            log.warning("ann_maintenance_does_not_end")

    def _loop(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            pause_s = self._interval_s
            try:
                if self.round():
                    pause_s = BREATH_S
            except DatabaseError as error:
                self.resign()
                log.warning("ann_maintenance_failed", error=str(error))
            except Exception:  # the thread outlives a defect in one round
                self.resign()
                log.exception("ann_maintenance_failed")
        self.resign()

    def round(self) -> bool:
        """Drops what has to go and builds one index, if this process leads; returns whether more may be due.

        Raises:
            DatabaseError: When the database cannot be reached or read.
        """
        session = self._lead()
        if session is None or not session.try_lock(AnnLock.WORK):
            return False
        more = self._work(session)
        session.unlock(AnnLock.WORK)
        return more

    def _lead(self) -> AnnSession | None:
        """Returns the session with the leader's lock, None where another process has it."""
        if self._session is None:
            session = AnnSession(self._url, build_memory_mb=self._build_memory_mb)
            if not session.try_lock(AnnLock.LEADER):
                session.close()
                return None
            log.info("ann_maintenance_leads")
            self._session = session
        return self._session

    def resign(self) -> None:
        """Lets another process lead, until the next round."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _work(self, session: AnnSession) -> bool:
        waiting: set[str] = set()
        for step in self._steps(session):
            if self._closing.is_set():
                return False
            if step.name in waiting or not self._is_time_for(step):
                waiting.add(step.name)  # a build must not come before the removal of what is in its place
                continue
            done = self._carry_out(session, step)
            if step.act in {Act.BUILD, Act.REBUILD}:
                return True  # it took a while: what is due next is another question
            if not done:
                waiting.add(step.name)
        return False

    def _steps(self, session: AnnSession) -> list[Step]:
        indexes = session.query(list_indexes, user_id=ACROSS_USERS)
        users = session.query(wanted_users, user_id=ACROSS_USERS)
        rows = session.query(lambda conn: self._counts.of(conn, users), user_id=ACROSS_USERS)
        result = steps(indexes, rows, session.query(ann_counts.total_rows), self._policy)
        keys = {(step.act, step.name) for step in result}
        self._failures = {key: failure for key, failure in self._failures.items() if key in keys}
        return result

    def _is_time_for(self, step: Step) -> bool:
        failure = self._failures.get((step.act, step.name))
        return failure is None or failure.retry_at <= time.monotonic()

    def _carry_out(self, session: AnnSession, step: Step) -> bool:
        """Does one step and returns whether it is done; one that failed has to wait.

        Raises:
            DatabaseUnavailable: The connection is lost, and with it the lock.
        """
        key = step.act, step.name
        before = self._failures.get(key)
        started_at = time.monotonic()
        try:
            _run(session, step, self._policy, parallel=before is None or before.parallel)
        except DatabaseError as error:
            if self._closing.is_set():
                log.info("ann_step_cancelled", act=step.act.value, index=step.name)
                return False
            # Also where the connection is lost: perhaps the build was what the server died of.
            failure = self._failures[key] = self._failed(before, error)
            retry_in_s = round(failure.retry_at - time.monotonic())
            log.warning("ann_step_failed", act=step.act.value, index=step.name, error=str(error), retry_in_s=retry_in_s)
            if isinstance(error, DatabaseUnavailable):
                raise
            return False
        self._failures.pop(key, None)
        if step.user_id is not None and step.act in {Act.BUILD, Act.REBUILD}:
            self._counts.built(step.user_id, step.rows)
        took_s = round(time.monotonic() - started_at, 1)
        log.info("ann_step_done", act=step.act.value, index=step.name, reason=step.reason, took_s=took_s)
        return True

    @staticmethod
    def _failed(before: _Failure | None, error: DatabaseError) -> _Failure:
        times = 1 if before is None else before.times + 1
        delay_s = min(MAX_RETRY_S, FIRST_RETRY_S * 2 ** (times - 1))
        # Parallel workers share memory as large as maintenance_work_mem, and a container may have 64 MB of it.
        return _Failure(times, time.monotonic() + delay_s, parallel=not isinstance(error, StorageFull))


def _run(session: AnnSession, step: Step, policy: AnnPolicy, *, parallel: bool) -> None:
    blueprint = Blueprint(
        name=step.name, user_id=step.user_id, rows=step.rows, options=policy.options, parallel=parallel
    )
    user_id = step.user_id
    match step.act:
        case Act.BUILD:
            ann_indexes.create(session, blueprint)
        case Act.REBUILD:
            ann_indexes.replace(session, blueprint)
        case Act.FORGET:
            assert user_id is not None  # noqa: S101 - the rules forget users
            session.query(lambda conn: ann_indexes.forget(conn, user_id), user_id=user_id)
            ann_indexes.drop(session, step.name)
        case Act.DROP:
            ann_indexes.drop(session, step.name)
