"""The results of a scale: one JSON file, to which each part is added as soon as it is done.

Parts can be measured one by one, in any order: a result takes the place of an earlier one of the same part. Results
of another machine or other sizes do not mix; the file then begins anew.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.part import PartResult

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIGITS = 5
"""Significant ones; a measurement has fewer."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """When and where a part was measured."""

    started_at: datetime
    duration_s: float
    load_before: Sequence[float]
    load_after: Sequence[float]
    revision: str

    def as_json(self) -> Json:
        """Returns them for the file."""
        return {
            "started_at": self.started_at.astimezone(UTC).isoformat(timespec="seconds"),
            "duration_s": self.duration_s,
            "load_average": {"before": list(self.load_before), "after": list(self.load_after)},
            "revision": self.revision,
        }


class Outcome:
    """What is known about a scale."""

    def __init__(
        self,
        path: Path,
        scale: "DataclassInstance",
        *,
        machine: Mapping[str, object],
        postgres: Mapping[str, str],
    ) -> None:
        """Continues the file at `path` if it is about the same machine and sizes; `scale` holds the sizes."""
        self.path = path
        fresh = rounded({"scale": asdict(scale), "machine": dict(machine), "postgres": dict(postgres), "parts": {}})
        known = read(path)
        same = known is not None and all(known.get(key) == fresh[key] for key in ("scale", "machine", "postgres"))
        self.data: Json = known if known is not None and same else fresh
        self.starts_anew = known is not None and not same

    def has(self, part: str) -> bool:
        """Whether the part was measured."""
        return "failed" not in self.data["parts"].get(part, {"failed": ""})

    def add(self, part: str, result: PartResult, circumstances: Circumstances) -> None:
        """Takes a part's result and writes the file."""
        targets = [{**asdict(target), "verdict": target.verdict} for target in result.targets]
        self._put(part, {**circumstances.as_json(), "targets": targets, "figures": dict(result.figures)})

    def fail(self, part: str, reason: str, circumstances: Circumstances) -> None:
        """Takes note that a part could not be measured, unless an earlier run could."""
        if not self.has(part):
            self._put(part, {**circumstances.as_json(), "failed": reason})

    def _put(self, part: str, entry: Json) -> None:
        self.data["parts"][part] = rounded(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def read(path: Path) -> Json | None:
    """Returns what a file holds, None where there is none."""
    if not path.is_file():
        return None
    data: Json = json.loads(path.read_text(encoding="utf-8"))
    return data


def rounded(value: Any) -> Any:
    """Returns the value as JSON will hold it, floats with five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {str(name): rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
