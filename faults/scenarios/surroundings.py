"""The embedding provider is down, and the clock is set."""

import time
from itertools import pairwise
from typing import Any

import psycopg

from db.embedded import EmbeddedPostgres
from faults import postgres
from faults.client import DIMENSIONS
from faults.postgres import own_instance
from faults.scenario import Figures
from faults.service import Service
from faults.stepped_clock import SteppedClock
from faults.trial import Trial
from faults.workload import Load
from tests.embedding.provider import Hang, Provider, Reset, Status

DOWN_S = 5.0
STEPS_S = (3_600.0, -7_200.0, 3_600.0)
"""An hour ahead, then two back, then right again."""
SLACK_S = 60.0


def provider_down(load: Load) -> Figures:
    """The provider answers 503, then hangs, then resets connections, while texts are stored and searched for."""
    with Provider(dimensions=DIMENSIONS) as provider, own_instance() as instance:
        settings: dict[str, Any] = {
            "embedder": "openai",
            "openai_base_url": provider.base_url,
            "embedding_model": postgres.SPACE.model,
            # Every text goes to the provider.
            "embedding_cache_max_rows": 0,
        }
        refusal = "UNAVAILABLE EMBEDDER_UNAVAILABLE"
        with (
            Service(instance.url, **settings) as service,
            Trial(service, load, texts=True, refusal=refusal) as trial,
        ):
            with trial.cause():
                for trouble in (Status(503), Hang(), Reset()):
                    provider.fail(trouble, always=True)
                    time.sleep(DOWN_S)
                provider.recover()
            return trial.findings(instance.url)


def clock_stepped(load: Load) -> Figures:
    """The clock of the service and of PostgreSQL is set ahead and back while they run."""
    with (
        SteppedClock() as clock,
        postgres.folder() as data_dir,
        Service(data_dir=data_dir, preload=clock.environment) as service,
        Trial(service, load) as trial,
        EmbeddedPostgres.start(data_dir) as attached,
    ):
        clocks = [_clocks(attached.url)]
        for step_s in STEPS_S:
            with trial.cause():
                clock.step(step_s)
            clocks.append(_clocks(attached.url))
        figures = trial.findings(attached.url)
    seen = [[later - earlier for earlier, later in zip(*pair, strict=True)] for pair in pairwise(clocks)]
    unseen = [
        f"a step of {step_s:.0f} s was seen as {steps}"
        for step_s, steps in zip(STEPS_S, seen, strict=True)
        if any(abs(step - step_s) > SLACK_S for step in steps)
    ]
    return figures | {"steps_seen_s": seen, "broken_promises": unseen}


def _clocks(url: str) -> tuple[float, float]:
    """Returns how far PostgreSQL's clock and the service's are from ours, in seconds."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(CLOCKS, [time.time()] * 2).fetchone()
    if row is None:
        raise RuntimeError("the service has stored nothing yet")
    return float(row[0]), float(row[1])


# What was written last is known by its transaction; times of the service's clock are what is asked for.
CLOCKS = """
SELECT extract(epoch FROM clock_timestamp()) - %s, extract(epoch FROM updated_at) - %s FROM memory_entries
ORDER BY age(xmin) LIMIT 1
"""
