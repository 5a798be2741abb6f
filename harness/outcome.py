"""What is known about a scale: one file of results, to which each part is added as soon as it is done.

Parts can be measured one by one, in any order: a result takes the place of an earlier one of the same part. Results
of another machine or other sizes do not mix; the file then begins anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.attempt import Attempt, Circumstances
from harness.results_file import Json, read, rounded, write
from harness.targets import Target

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class PartResult:
    """What a part found out."""

    figures: Figures
    targets: Sequence[Target] = field(default_factory=list)


class Outcome:
    """The results of a scale."""

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

    def take(self, part: str, ended: Attempt[PartResult]) -> None:
        """Takes what came of a part and writes the file."""
        if ended.result is not None:
            self.add(part, ended.result, ended.circumstances)
        else:
            self.fail(part, ended.failed or f"skipped: {ended.skipped}", ended.circumstances)

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
        write(self.path, self.data)
