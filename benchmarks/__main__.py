"""The command line of the benchmark."""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import plots, report
from benchmarks.part import Bench, Part
from benchmarks.scale import SCALES, Scale
from benchmarks.tables import Tables
from harness import machine
from harness.attempt import Attempt
from harness.instance import Instance
from harness.outcome import Outcome, PartResult
from harness.report import target_table, verdicts
from harness.runner import prepare_process, run_parts, say

# In an order that makes each table once: those that need the same one follow one another.
PARTS = {
    "small-users": "small_users",
    "middle-user": "middle_user",
    "batch": "batch",
    "workers": "workers",
    "large-user": "large_user",
    "user-growth": "user_growth",
    "table-growth": "table_growth",
    "import": "importing",
    "mixed": "mixed",
    "overload": "overload",
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Runs the chosen parts; returns 0 when each could be measured, whatever it found."""
    arguments = _arguments()
    prepare_process()
    chosen = list(dict.fromkeys(arguments.only or PARTS))
    measured, failed = measure(SCALES[arguments.mode], chosen, folder=arguments.out, resume=arguments.resume)
    print("\n".join(target_table(measured.data)))
    for path in (measured.path, measured.path.with_suffix(".md")):
        print(path)
    return 1 if failed else 0


def measure(scale: Scale, chosen: Sequence[str], *, folder: Path, resume: bool = False) -> tuple[Outcome, list[str]]:
    """Runs parts in a PostgreSQL of their own; writes the results after each, into `folder`.

    Returns:
        What is known then, and the parts that failed.
    """
    with Instance() as instance:
        bench = Bench(scale, instance, Tables(instance, scale))
        outcome = Outcome(folder / f"{scale.name}.json", scale, machine=machine.facts(), postgres=instance.settings())
        if outcome.starts_anew:
            say(f"{outcome.path.name} is of another machine or of other sizes: beginning anew")
        there = [name for name in chosen if resume and outcome.has(name)]
        for name in there:
            say(f"{name}: there already")
        parts = {name: partial(_run, name, bench) for name in chosen if name not in there}

        def keep(name: str, ended: Attempt[PartResult]) -> Iterable[str]:
            outcome.take(name, ended)
            _write_up(outcome)
            return [] if ended.result is None else verdicts(ended.result.targets)

        failed = run_parts(parts, keep, limit_s=scale.part_limit_s)
    return outcome, failed


def _run(name: str, bench: Bench) -> PartResult:
    part: Part = importlib.import_module(f"benchmarks.parts.{PARTS[name]}").run
    return part(bench)


def _write_up(outcome: Outcome) -> None:
    if outcome.data["parts"]:
        outcome.path.with_suffix(".md").write_text(report.as_markdown(outcome.data), encoding="utf-8")
        plots.draw(outcome.data, outcome.path.parent)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the service against plain psycopg on this machine. Starts a PostgreSQL and servers of "
        "its own and removes everything afterwards. Results are added to those of earlier runs, part by part.",
    )
    parser.add_argument(
        "--mode", choices=list(SCALES), default="quick", help="quick: under 6 minutes; tiny: proves that it runs"
    )
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), metavar="NAME", help=f"one part of: {', '.join(PARTS)}"
    )
    parser.add_argument("--resume", action="store_true", help="leave out the parts that have a result already")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
