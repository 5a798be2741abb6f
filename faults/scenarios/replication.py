"""The primary dies, and its standby takes over; the service knows both addresses from the beginning."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg

from db.embedded import EmbeddedPostgres, account
from db.embedded.programs import find_installation
from faults import postgres
from faults.postgres import Instance, own_instance
from faults.scenario import Figures
from faults.service import Service
from faults.trial import Trial
from faults.workload import Load

ATTACH_LIMIT_S = 60.0
PROMOTION_LIMIT_S = 60

IN_STEP = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"


def primary_killed(load: Load) -> Figures:
    """The primary is killed and the standby promoted."""
    with own_instance() as primary, _standby_of(primary) as standby:
        url = _url_of_both(primary, standby)
        with Service(url) as service, Trial(service, load) as trial:
            with trial.cause():
                postgres.kill(primary.data_dir)
                with psycopg.connect(standby.url, autocommit=True) as connection:
                    connection.execute("SELECT pg_promote(wait => true, wait_seconds => %s)", [PROMOTION_LIMIT_S])
            return trial.findings(standby.url)


def _url_of_both(*instances: Instance) -> str:
    """Returns a URL under which whichever of them takes writes is found."""
    queries = [parse_qs(urlsplit(instance.url).query) for instance in instances]
    host, port = (",".join(query[name][0] for query in queries) for name in ("host", "port"))
    first = urlsplit(instances[0].url)
    return f"user={first.username} dbname={first.path[1:]} host={host} port={port} target_session_attrs=read-write"


@contextmanager
def _standby_of(primary: Instance) -> Iterator[Instance]:
    """Yields a standby that the primary waits for with every commit: what is acknowledged is on both."""
    with postgres.folder() as data_dir:
        _copy(primary, data_dir_of_standby := postgres.cluster(data_dir))
        with EmbeddedPostgres.start(data_dir) as standby:
            with primary.administer() as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                connection.execute("SELECT pg_reload_conf()")
                _wait_until_in_step(connection)
            yield Instance(standby, data_dir_of_standby.parent)


def _copy(primary: Instance, target: Path) -> None:
    """Copies the primary's cluster, with what makes the copy follow it."""
    owner = account.choose(postgres.cluster(primary.data_dir))
    account.give(owner, target.parent)
    account.let_reach(owner, target)
    program = find_installation() / "bin" / "pg_basebackup"
    switch: dict[str, Any] = {"user": owner.uid, "group": owner.gid, "extra_groups": []} if owner.is_other else {}
    options = ["--pgdata", str(target), "--write-recovery-conf", "--checkpoint=fast", "--dbname", primary.url]
    subprocess.run([program, *options], check=True, capture_output=True, cwd="/", **switch)


def _wait_until_in_step(connection: psycopg.Connection[object]) -> None:
    deadline = time.monotonic() + ATTACH_LIMIT_S
    while not connection.execute(IN_STEP).rowcount:
        if time.monotonic() > deadline:
            raise RuntimeError("the standby does not follow the primary")
        time.sleep(0.1)
