"""The disk that PostgreSQL writes to is full."""

import time
from pathlib import Path

import psycopg
from psycopg import sql

from db import migrate
from db.embedded import EmbeddedPostgres, account
from faults import postgres
from faults.postgres import SPACE, own_instance
from faults.scenario import Figures
from faults.service import Service
from faults.small_disk import filled, small_disk
from faults.trial import Trial
from faults.workload import Load

FULL_S = 8.0
TABLES_MB = 96
# The cluster as it is made takes 60 MB, of them 16 for the first file of the log.
CLUSTER_MB = 256


def tables_full(load: Load) -> Figures:
    """There is no space for tables, while the write-ahead log, on another disk, has some."""
    with small_disk(megabytes=TABLES_MB) as disk, own_instance() as instance:
        owner = account.choose(postgres.cluster(instance.data_dir))
        space = disk / "tables"
        space.mkdir()
        account.give(owner, space)
        account.let_reach(owner, space)
        with instance.administer() as connection:
            connection.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(space))))
            connection.execute("CREATE DATABASE small TABLESPACE small")
        url = instance.postgres.database_url("small")
        migrate.upgrade(url, SPACE)
        with Service(url) as service, Trial(service, load, refusal="RESOURCE_EXHAUSTED STORAGE_FULL") as trial:
            with trial.cause(), filled(disk):
                time.sleep(FULL_S)
                broken = service.refuses_reads()
            return trial.findings(url) | {"broken_promises": broken}


def everything_full(load: Load) -> Figures:
    """There is no space for anything that the service's own PostgreSQL writes, its write-ahead log included."""
    with small_disk(megabytes=CLUSTER_MB) as disk:
        data_dir = disk / "data"
        settings = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
        try:
            with EmbeddedPostgres.start(data_dir) as attached:
                with psycopg.connect(attached.url, autocommit=True) as connection:
                    for name, value in settings.items():
                        connection.execute(
                            sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                        )
                    # The files of the log that exist are used again: only a new one needs space.
                    connection.execute("SELECT pg_reload_conf()")
                return _filled_up(data_dir, disk, attached, load)
        finally:
            postgres.end(data_dir)


def _filled_up(data_dir: Path, disk: Path, attached: EmbeddedPostgres, load: Load) -> Figures:
    refusal = "UNAVAILABLE DATABASE_UNAVAILABLE"
    with Service(data_dir=data_dir) as service, Trial(service, load, refusal=refusal) as trial:
        with trial.cause(), filled(disk):
            ends_at = time.monotonic() + FULL_S
            while time.monotonic() < ends_at:
                _demand_log(attached.url)
                time.sleep(0.5)
        return trial.findings(attached.url)


def _demand_log(url: str) -> None:
    """Makes PostgreSQL begin a new file of its write-ahead log, for which there is no space."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
            connection.execute("SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()")
    except psycopg.Error:
        return  # it has come to a stop, as was to be
