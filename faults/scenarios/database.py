"""PostgreSQL is killed, restarted, paused, made read-only, or has no connection left."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from signal import Signals

import psycopg

from db.embedded import EmbeddedPostgres
from faults import postgres
from faults.postgres import Instance, own_instance
from faults.scenario import Figures
from faults.service import Service
from faults.trial import Trial
from faults.workload import Load

PAUSE_S = 20.0
SHORT_S = 8.0
FEW_CONNECTIONS = 40

REFUSAL = "UNAVAILABLE DATABASE_UNAVAILABLE"

# The first, and one for each time that no postmaster was left.
STARTS = 3


def embedded_killed(load: Load) -> Figures:
    """The service's own PostgreSQL is killed: one backend, then the postmaster, then all processes together."""
    with (
        postgres.folder() as data_dir,
        Service(data_dir=data_dir) as service,
        Trial(service, load, refusal=REFUSAL) as trial,
    ):
        for harm in (postgres.kill_client_backend, postgres.kill_main_process, postgres.kill):
            with trial.cause():
                harm(data_dir)
        with EmbeddedPostgres.start(data_dir) as attached:
            figures = trial.findings(attached.url)
        started = len(service.events("embedded_postgres_running"))
        return figures | {"broken_promises": [] if started == STARTS else [f"PostgreSQL was started {started} times"]}


def restarted(load: Load, mode: Signals) -> Figures:
    """PostgreSQL is shut down and started again."""

    def restart(instance: Instance, _: Service) -> list[str]:
        postgres.restart(instance.postgres, instance.data_dir, mode)
        return []

    return _harmed(load, restart, times=2)


def paused(load: Load) -> Figures:
    """All processes of PostgreSQL stand still."""

    def pause(instance: Instance, service: Service) -> list[str]:
        with ThreadPoolExecutor(1) as threads:
            freezing = threads.submit(postgres.freeze, instance.data_dir, seconds=PAUSE_S)
            time.sleep(PAUSE_S / 2)
            found = service.says_it_serves()
            freezing.result()
        return found

    return _harmed(load, pause)


def read_only(load: Load) -> Figures:
    """PostgreSQL refuses writes, as a standby does or a primary that was demoted."""

    def refuse_writes(instance: Instance, service: Service) -> list[str]:
        with instance.administer() as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            time.sleep(SHORT_S)
            found = [*service.says_it_serves(), *service.refuses_reads()]
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = off")
            connection.execute("SELECT pg_reload_conf()")
        return found

    return _harmed(load, refuse_writes)


def out_of_connections(load: Load) -> Figures:
    """Other clients take every connection, those of the service included."""

    def take_all(instance: Instance, _: Service) -> list[str]:
        with ExitStack() as taken:
            administrator = taken.enter_context(instance.administer())
            others: list[psycopg.Connection[object]] = []
            until = time.monotonic() + SHORT_S
            while time.monotonic() < until:
                pids = [other.info.backend_pid for other in others]
                administrator.execute(END_THOSE_OF_THE_SERVICE, [pids])
                others += [taken.enter_context(other) for other in _taken(instance.url)]
                time.sleep(0.2)
        return []

    return _harmed(load, take_all, max_connections=str(FEW_CONNECTIONS))


END_THOSE_OF_THE_SERVICE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND pid <> ALL(%s::int[])
"""


def _taken(url: str) -> Iterator[psycopg.Connection[object]]:
    """Yields new connections until there are no more."""
    while True:
        try:
            yield psycopg.connect(url, autocommit=True, connect_timeout=5)
        except psycopg.OperationalError:
            return


def _harmed(load: Load, harm: Callable[[Instance, Service], list[str]], *, times: int = 1, **settings: str) -> Figures:
    """Does harm, which says what promise of its own was broken meanwhile."""
    broken: list[str] = []
    with (
        own_instance(**settings) as instance,
        Service(instance.url) as service,
        Trial(service, load, refusal=REFUSAL) as trial,
    ):
        for _ in range(times):
            with trial.cause():
                broken += harm(instance, service)
        return trial.findings(instance.url) | {"broken_promises": broken}
