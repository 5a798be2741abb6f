"""The command line of the evaluation."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from evaluation import parts, plots, targets
from evaluation.sizes import FULL, Sizes
from harness import machine
from harness.attempt import Attempt
from harness.instance import Instance
from harness.outcome import Outcome, PartResult
from harness.report import target_table, verdicts
from harness.runner import prepare_process, run_parts, say

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Runs the chosen parts; returns 0 when each was measured, whatever it found, or skipped for lack of its data."""
    arguments = _arguments()
    prepare_process()
    outcome, failed = evaluate(FULL, list(dict.fromkeys(arguments.only or parts.NAMES)), folder=arguments.out)
    print("\n".join(target_table(outcome.data)))
    print(outcome.path)
    return 1 if failed else 0


def evaluate(sizes: Sizes, chosen: Sequence[str], *, folder: Path) -> tuple[Outcome, list[str]]:
    """Runs parts in a PostgreSQL of their own; writes results and plots after each, into `folder`.

    Returns:
        What is known then, and the parts that failed.
    """
    with Instance() as instance:
        path = folder / f"{sizes.name}.json"
        outcome = Outcome(path, sizes, machine=machine.facts(), postgres=instance.settings())
        if outcome.starts_anew:
            say(f"{path.name} is of another machine or of other sizes: beginning anew")

        def keep(name: str, ended: Attempt[PartResult]) -> Iterable[str]:
            outcome.take(name, ended)
            plots.draw(outcome.data, folder)
            return [] if ended.result is None else verdicts(ended.result.targets)

        failed = run_parts({name: partial(_run, name, instance, sizes) for name in chosen}, keep)
    return outcome, failed


def _run(name: str, instance: Instance, sizes: Sizes) -> PartResult:
    figures = parts.run(name, instance, sizes)
    return PartResult(figures, targets.of(name, figures))


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
