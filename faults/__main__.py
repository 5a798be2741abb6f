"""The command line of the scenarios."""

import argparse
import logging
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import structlog

from benchmarks.time_limit import time_limit
from faults import record
from faults.catalog import SCENARIOS
from faults.scenario import NotPossible, Scenario
from faults.trial import shortfalls
from faults.workload import Load

# The longest takes 50 s on two cores that do nothing else.
LIMIT_S = 240.0
REASON_CHARACTERS = 300


def main() -> int:
    """Runs the chosen scenarios; returns 0 when each kept its promise, or could not be run on this machine."""
    arguments = _arguments()
    if arguments.list:
        print("\n".join(f"{scenario.name:20} {scenario.fault}" for scenario in SCENARIOS))
        return 0
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    signal.signal(signal.SIGTERM, _leave)
    chosen = [scenario for scenario in SCENARIOS if not arguments.only or scenario.name in arguments.only]
    kept = [_run(scenario, arguments.out) for scenario in chosen]
    return 0 if all(kept) else 1


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit("ended by SIGTERM")  # as an exception, so that servers and PostgreSQL are stopped on the way out


def _run(scenario: Scenario, path: Path) -> bool:
    """Runs a scenario and keeps what it found; returns False when a promise was broken."""
    started_at, began = datetime.now(UTC), time.monotonic()
    _say(f"{scenario.name} ...")
    try:
        with time_limit(LIMIT_S):
            figures = scenario.run(Load())
    except NotPossible as error:
        _say(f"  not possible here: {error}")
        return True
    except Exception as error:  # noqa: BLE001 - the other scenarios are to run; the record says what befell this one
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _say(f"  failed: {reason}")
        record.add(
            path,
            scenario.name,
            {"failed": reason[:REASON_CHARACTERS]},
            started_at=started_at,
            duration_s=time.monotonic() - began,
        )
        return False
    found = shortfalls(figures)
    entry = {"figures": figures, "shortfalls": found}
    record.add(path, scenario.name, entry, started_at=started_at, duration_s=time.monotonic() - began)
    _say(f"  {time.monotonic() - began:.0f} s, served again after {figures['recovery_s']:.1f} s")
    for shortfall in found:
        _say(f"  BROKEN: {shortfall}")
    return not found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
