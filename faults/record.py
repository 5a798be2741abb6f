"""The file of results: what the last run of each scenario found, and when and where."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.outcome import read, rounded

RESULTS = Path(__file__).parent / "results" / "faults.json"

Json = dict[str, Any]


def add(path: Path, name: str, entry: Json, *, started_at: datetime, duration_s: float) -> None:
    """Puts what a scenario found in the place of what it found before."""
    data = read(path) or {"scenarios": {}}
    data["machine"] = machine.facts()
    data["scenarios"][name] = rounded(
        {
            "started_at": started_at.astimezone(UTC).isoformat(timespec="seconds"),
            "duration_s": duration_s,
            "load_average": machine.load_average(),
            "revision": machine.revision(),
            **entry,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
