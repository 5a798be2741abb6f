"""The command line of the benchmark."""

import argparse
import importlib
import logging
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import structlog

from benchmarks import machine, plots, report
from benchmarks.instance import Instance
from benchmarks.outcome import Circumstances, Outcome
from benchmarks.part import Bench, Part
from benchmarks.scale import SCALES, Scale
from benchmarks.tables import Tables
from benchmarks.time_limit import time_limit

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
REASON_CHARACTERS = 300


def main() -> int:
    """Runs the chosen parts; returns 0 when all of them could be measured, whatever they found."""
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    signal.signal(signal.SIGTERM, _leave)
    chosen = list(dict.fromkeys(arguments.only or PARTS))
    measured = measure(SCALES[arguments.mode], chosen, folder=arguments.out, resume=arguments.resume)
    print("\n".join(report.target_table(report.targets(measured.data["parts"].values()))))
    for path in (measured.path, measured.path.with_suffix(".md")):
        print(path)
    return 0 if all(measured.has(name) for name in chosen) else 1


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit("ended by SIGTERM")  # as an exception, so that servers and PostgreSQL are stopped on the way out


def measure(scale: Scale, chosen: Sequence[str], *, folder: Path, resume: bool = False) -> Outcome:
    """Runs parts in a PostgreSQL of their own; writes the results after each, into `folder`."""
    with Instance() as instance:
        bench = Bench(scale, instance, Tables(instance, scale))
        outcome = Outcome(folder / f"{scale.name}.json", scale, machine=machine.facts(), postgres=instance.settings())
        if outcome.starts_anew:
            _say(f"{outcome.path.name} is of another machine or of other sizes: beginning anew")
        for number, name in enumerate(chosen, start=1):
            if resume and outcome.has(name):
                _say(f"[{number}/{len(chosen)}] {name}: there already")
                continue
            _say(f"[{number}/{len(chosen)}] {name} ...")
            _measure_part(bench, name, outcome)
            _write_up(outcome)
    return outcome


def _measure_part(bench: Bench, name: str, outcome: Outcome) -> None:
    part: Part = importlib.import_module(f"benchmarks.parts.{PARTS[name]}").run
    started_at, began, load = datetime.now(UTC), time.monotonic(), machine.load_average()

    def circumstances() -> Circumstances:
        return Circumstances(
            started_at=started_at,
            duration_s=time.monotonic() - began,
            load_before=load,
            load_after=machine.load_average(),
            revision=machine.revision(),
        )

    try:
        with time_limit(bench.scale.part_limit_s):
            result = part(bench)
    except Exception as error:  # noqa: BLE001 - the other parts are to run; the report says what befell this one
        reason = f"{type(error).__name__}: {error}"
        outcome.fail(name, " ".join(reason.split())[:REASON_CHARACTERS], circumstances())
        _say(f"{name}: failed after {time.monotonic() - began:.0f} s: {reason}")
        return
    outcome.add(name, result, circumstances())
    _say(f"{name}: {time.monotonic() - began:.0f} s")
    for target in result.targets:
        _say(f"  {target.verdict}: {target.name}: {report.number(target.measured)} {target.unit}")


def _write_up(outcome: Outcome) -> None:
    if outcome.data["parts"]:
        outcome.path.with_suffix(".md").write_text(report.as_markdown(outcome.data), encoding="utf-8")
        plots.draw(outcome.data, outcome.path.parent)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the service against plain psycopg on this machine. Starts a PostgreSQL and servers of "
        "its own and removes everything afterwards. Results are added to those of earlier runs, part by part.",
    )
    parser.add_argument(
        "--mode", choices=list(SCALES), default="quick", help="quick: under 5 minutes; tiny: proves that it runs"
    )
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), metavar="NAME", help=f"one part of: {', '.join(PARTS)}"
    )
    parser.add_argument("--resume", action="store_true", help="leave out the parts that have a result already")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
