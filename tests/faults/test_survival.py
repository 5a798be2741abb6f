"""Each of the faults of `python -m faults`, with server processes, a PostgreSQL and callers of its own."""

import pytest

from faults.catalog import SCENARIOS
from faults.scenario import Scenario
from faults.trial import shortfalls
from faults.workload import Load
from harness.attempt import NotPossible


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_what_is_promised_of_every_fault_is_kept(scenario: Scenario) -> None:
    try:
        figures = scenario.run(Load())
    except NotPossible as error:
        pytest.skip(str(error))
    assert not shortfalls(figures), figures
