"""The file of results: what the last run of each scenario found, and when and where."""

from pathlib import Path

from harness import machine
from harness.attempt import Circumstances
from harness.results_file import Json, read, rounded, write

RESULTS = Path(__file__).parent / "results" / "faults.json"


def add(path: Path, name: str, entry: Json, circumstances: Circumstances) -> None:
    """Puts what a scenario found in the place of what it found before."""
    data = read(path) or {"scenarios": {}}
    data["machine"] = machine.facts()
    at_the_end = {"load_average": circumstances.load_after}
    data["scenarios"][name] = rounded({**circumstances.as_json(), **at_the_end, **entry})
    write(path, data)
