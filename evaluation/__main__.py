"""The command line of the evaluation."""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import structlog

from benchmarks import machine, report
from benchmarks.instance import Instance
from benchmarks.outcome import Circumstances, Outcome
from benchmarks.part import PartResult
from evaluation import parts, plots, targets
from evaluation.parts import Skipped
from evaluation.sizes import FULL, Sizes

RESULTS = Path(__file__).parent / "results"
REASON_CHARACTERS = 300


def main() -> int:
    """Runs the chosen parts; returns 0 when each was measured, whatever it found, or skipped for lack of its data."""
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    signal.signal(signal.SIGTERM, _leave)
    outcome, failed = evaluate(FULL, list(dict.fromkeys(arguments.only or parts.NAMES)), folder=arguments.out)
    print("\n".join(report.target_table(report.targets(outcome.data["parts"].values()))))
    print(outcome.path)
    return 1 if failed else 0


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit("ended by SIGTERM")  # as an exception, so that servers and PostgreSQL are stopped on the way out


def evaluate(sizes: Sizes, chosen: Sequence[str], *, folder: Path) -> tuple[Outcome, list[str]]:
    """Runs parts in a PostgreSQL of their own; writes results and plots after each, into `folder`.

    Returns:
        What is known then, and the parts that failed.
    """
    failed = []
    with Instance() as instance:
        path = folder / f"{sizes.name}.json"
        outcome = Outcome(path, sizes, machine=machine.facts(), postgres=instance.settings())
        if outcome.starts_anew:
            _say(f"{path.name} is of another machine or of other sizes: beginning anew")
        for number, name in enumerate(chosen, start=1):
            _say(f"[{number}/{len(chosen)}] {name} ...")
            if not _measure(name, instance, sizes, outcome):
                failed.append(name)
            plots.draw(outcome.data, folder)
    return outcome, failed


def _measure(name: str, instance: Instance, sizes: Sizes, outcome: Outcome) -> bool:
    """Returns False when the part failed, True also when it was skipped."""
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
        figures = parts.run(name, instance, sizes)
    except Skipped as skipped:
        outcome.fail(name, f"skipped: {skipped}", circumstances())
        _say(f"{name}: skipped: {skipped}")
        return True
    except Exception as error:  # noqa: BLE001 - the other parts are to run; the report says what befell this one
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARACTERS]
        outcome.fail(name, reason, circumstances())
        _say(f"{name}: failed: {reason}")
        return False
    result = PartResult(figures, targets.of(name, figures))
    outcome.add(name, result, circumstances())
    _say(f"{name}: {time.monotonic() - began:.0f} s")
    for target in result.targets:
        _say(f"  {target.verdict}: {target.name}: {report.number(target.measured)} {target.unit}")
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Measures how well the service finds what is asked for, on judged questions. Starts a PostgreSQL "
        "and servers of its own and removes everything afterwards. Results are added to those of earlier runs.",
    )
    parser.add_argument(
        "--only", action="append", choices=parts.NAMES, metavar="NAME", help=f"one part of: {', '.join(parts.NAMES)}"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
