"""Looks for known vulnerabilities in what is installed in .venv; says what could not be looked up.

Run by `make audit`, which installs pip-audit into an environment of its own. Exits with 1 when there are any or, with
--require, when anything was skipped.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AUDITED = ROOT / ".venv"
TIMEOUT_S = 600

# The project itself is on no index.
OWN_NAME = "memory-service"


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit has found."""

    audited: int
    vulnerable: tuple[str, ...]
    """A line for each vulnerability."""
    skipped: tuple[str, ...]
    """A line for each package that was not looked up, with the reason."""


def report_of(found: Mapping[str, Any]) -> Report:
    """Returns what pip-audit's JSON says."""
    packages = [one for one in found["dependencies"] if one["name"] != OWN_NAME]
    skipped = [f"{one['name']}: {one['skip_reason']}" for one in packages if "skip_reason" in one]
    vulnerable = [
        f"{one['name']} {one['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version'}"
        for one in packages
        for fault in one.get("vulns", ())
    ]
    return Report(len(packages) - len(skipped), tuple(vulnerable), tuple(skipped))


def site_packages(environment: Path) -> Path:
    """Returns where a virtual environment keeps its packages."""
    [found] = (environment / "lib").glob("python3.*/site-packages")
    return found


def audit(pip_audit: Path) -> Report:
    """Runs pip-audit; where it cannot reach its database, everything counts as skipped."""
    command: list[str | Path] = [
        pip_audit,
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--path",
        site_packages(AUDITED),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    try:
        return report_of(json.loads(done.stdout))
    except ValueError:
        # It ends with 1 for vulnerabilities as for everything else; only without a report there is no answer.
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Report(0, (), (f"all packages: {reason}",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--require", action="store_true", help="fail also when something could not be looked up")
    options = parser.parse_args(arguments)
    report = audit(Path(sysconfig.get_path("scripts")) / "pip-audit")
    for line in report.vulnerable:
        print(f"VULNERABLE {line}")
    for line in report.skipped if report.audited else report.skipped[:1]:
        print(f"SKIPPED {line}")
    if not report.audited:
        print("NOT AUDITED: the database of vulnerabilities is out of reach, or knows none of the packages")
    print(f"{report.audited} packages looked up, {len(report.vulnerable)} vulnerabilities known")
    return 1 if report.vulnerable or (options.require and report.skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
