"""Chooses the embedded PostgreSQL's settings for the machine it runs on."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

HEADER = """\
# Written by memory-service whenever it starts PostgreSQL: edits are lost. To change a setting, use
# ALTER SYSTEM SET name = value, which wins over this file.
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the settings depend on."""

    memory_bytes: int
    """Of the machine, or of the container where that has less."""
    shared_memory_bytes: int | None
    """Free in /dev/shm; None where there is none."""
    disk_bytes: int
    """Free where the data lie."""


def inspect_machine(cluster: Path) -> Machine:
    """Returns the facts of this machine."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared_memory = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    return Machine(
        memory_bytes=min([physical, *cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]),
        shared_memory_bytes=shutil.disk_usage(shared_memory).free if shared_memory.is_dir() else None,
        disk_bytes=shutil.disk_usage(cluster).free,
    )


def choose(machine: Machine, *, socket_dir: Path, cluster_name: str, port: int) -> dict[str, str]:
    """Returns PostgreSQL settings by name."""
    memory = machine.memory_bytes
    maintenance = _between(64 * MIB, memory // 16, GIB)
    settings = {
        # Only this account and root reach the server: no TCP, and a socket closed to everyone else.
        "listen_addresses": "",
        "port": str(port),
        "unix_socket_directories": f'"{socket_dir}"',
        "unix_socket_permissions": "0700",
        "cluster_name": cluster_name,
        # Several processes with a pool each, and room for psql.
        "max_connections": "200",
        "shared_preload_libraries": "",
        # A quarter of memory; with the default of 128 MB the same search took 3.5 ms instead of 1.
        "shared_buffers": _megabytes(_between(64 * MIB, memory // 4, 4 * GIB)),
        "effective_cache_size": _megabytes(memory * 3 // 4),
        "huge_pages": "try",
        # An HNSW graph that does not fit degenerates into row by row inserts.
        "maintenance_work_mem": _megabytes(maintenance),
        # Three autovacuum workers must not take that three times.
        "autovacuum_work_mem": _megabytes(64 * MIB),
        # Fewer checkpoints under bulk inserts, but never much of a small disk.
        "max_wal_size": _megabytes(_between(256 * MIB, machine.disk_bytes // 10, 4 * GIB)),
        # Statements of a millisecond; compiling one costs more than running it.
        "jit": "off",
        "random_page_cost": "1.1",
        # Index-only scans need a fresh visibility map; by default it waits for a fifth of the table to be new.
        "autovacuum_vacuum_insert_scale_factor": "0.01",
        "fsync": "on",
        "timezone": "UTC",
        **_log_settings(),
    }
    if machine.shared_memory_bytes is not None and machine.shared_memory_bytes < maintenance:
        # Containers often get 64 MB; parallel index builds and queries allocate more than that in one piece.
        settings["dynamic_shared_memory_type"] = "sysv"
    return settings


def render(settings: Mapping[str, str]) -> str:
    """Returns `settings` as the text of a configuration file."""
    lines = ["{} = '{}'".format(name, value.replace("'", "''")) for name, value in settings.items()]
    return HEADER + "\n".join(lines) + "\n"


def cgroup_limits(membership: Path, mount: Path) -> Iterator[int]:
    """Yields the memory limits in bytes that hold for this process, of control groups version 1 and 2.

    Args:
        membership: /proc/self/cgroup or a file like it; each line is hierarchy:controllers:path.
        mount: /sys/fs/cgroup or a folder like it. Inside a container the group itself may be mounted there, and the
            path lead nowhere: every folder on the way up is asked.
    """
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            limit = root / folder / name
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                yield int(text)


def _log_settings() -> dict[str, str]:
    """Returns settings for a log of one week that holds nothing a user stored."""
    return {
        "logging_collector": "on",
        "log_directory": "log",
        "log_filename": "postgresql-%a.log",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_truncate_on_rotation": "on",
        "log_file_mode": "0600",
        "log_line_prefix": "%m [%p] ",
        "log_timezone": "UTC",
        # Statements, parameters and the DETAIL of errors carry users' data; the service logs slow statements by name.
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        "log_checkpoints": "off",
    }


def _between(least: int, wanted: int, most: int) -> int:
    return max(least, min(wanted, most))


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes // MIB}MB"
