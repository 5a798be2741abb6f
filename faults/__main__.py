"""The command line of the scenarios."""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from faults import record
from faults.catalog import SCENARIOS
from faults.scenario import Figures
from faults.trial import shortfalls
from faults.workload import Load
from harness.attempt import Attempt
from harness.runner import prepare_process, run_parts

# The longest takes 50 s on two cores that do nothing else.
LIMIT_S = 240.0


def main() -> int:
    """Runs the chosen scenarios; returns 0 when each kept its promise, or could not be run on this machine."""
    arguments = _arguments()
    if arguments.list:
        print("\n".join(f"{scenario.name:20} {scenario.fault}" for scenario in SCENARIOS))
        return 0
    prepare_process()
    chosen = [scenario for scenario in SCENARIOS if not arguments.only or scenario.name in arguments.only]
    broken: list[str] = []

    def keep(name: str, ended: Attempt[Figures]) -> Iterable[str]:
        if ended.failed:
            record.add(arguments.out, name, {"failed": ended.failed}, ended.circumstances)
        if (figures := ended.result) is None:
            return []
        found = shortfalls(figures)
        broken.extend(found)
        record.add(arguments.out, name, {"figures": figures, "shortfalls": found}, ended.circumstances)
        return [f"served again after {figures['recovery_s']:.1f} s", *(f"BROKEN: {shortfall}" for shortfall in found)]

    failed = run_parts({scenario.name: partial(scenario.run, Load()) for scenario in chosen}, keep, limit_s=LIMIT_S)
    return 1 if failed or broken else 0


def _arguments() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description="Harms the running service and what it stands on, and counts what its callers lost. Starts "
        "PostgreSQL and servers of its own and removes everything afterwards. Results take the place of earlier ones.",
    )
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="name the scenarios and run none")
    parser.add_argument("--out", type=Path, default=record.RESULTS, metavar="FILE", help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
