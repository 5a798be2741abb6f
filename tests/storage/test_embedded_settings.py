"""The embedded PostgreSQL's settings for machines large and small."""

from pathlib import Path

import pytest

from db.embedded.settings import GIB, MIB, Machine, cgroup_limits, choose, inspect_machine, render

LARGE = Machine(memory_bytes=64 * GIB, shared_memory_bytes=32 * GIB, disk_bytes=1_000 * GIB)


def chosen(machine: Machine) -> dict[str, str]:
    return choose(machine, socket_dir=Path("/data"), cluster_name="memory-1", port=5432)


@pytest.mark.parametrize(
    ("memory_bytes", "shared_buffers", "maintenance_work_mem"),
    [
        (64 * GIB, "4096MB", "1024MB"),
        (8 * GIB, "2048MB", "512MB"),
        (GIB, "256MB", "64MB"),
        (128 * MIB, "64MB", "64MB"),
    ],
)
def test_memory_is_shared_out(memory_bytes: int, shared_buffers: str, maintenance_work_mem: str) -> None:
    settings = chosen(Machine(memory_bytes=memory_bytes, shared_memory_bytes=None, disk_bytes=GIB))
    assert settings["shared_buffers"] == shared_buffers
    assert settings["maintenance_work_mem"] == maintenance_work_mem


@pytest.mark.parametrize(
    ("disk_bytes", "max_wal_size"), [(1_000 * GIB, "4096MB"), (10 * GIB, "1024MB"), (GIB, "256MB")]
)
def test_the_log_of_changes_leaves_room_on_the_disk(disk_bytes: int, max_wal_size: str) -> None:
    machine = Machine(memory_bytes=GIB, shared_memory_bytes=None, disk_bytes=disk_bytes)
    assert chosen(machine)["max_wal_size"] == max_wal_size


def test_a_container_with_little_shared_memory_uses_the_kernels_other_kind() -> None:
    docker = Machine(memory_bytes=8 * GIB, shared_memory_bytes=64 * MIB, disk_bytes=100 * GIB)
    assert chosen(docker)["dynamic_shared_memory_type"] == "sysv"
    assert "dynamic_shared_memory_type" not in chosen(LARGE)


def test_a_value_cannot_end_its_quotes() -> None:
    assert "x = 'it''s'\n" in render({"x": "it's"})


def test_the_facts_of_this_machine_are_plausible(tmp_path: Path) -> None:
    machine = inspect_machine(tmp_path)
    assert 64 * MIB < machine.memory_bytes < 1 << 50
    assert machine.disk_bytes > 0


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    membership = write(tmp_path / "cgroup", "0::/system.slice/memory.service\n")
    write(tmp_path / "fs/system.slice/memory.service/memory.max", "max\n")
    write(tmp_path / "fs/system.slice/memory.max", "1073741824\n")
    write(tmp_path / "fs/memory.max", "4294967296\n")
    assert sorted(cgroup_limits(membership, tmp_path / "fs")) == [GIB, 4 * GIB]


def test_limits_of_control_groups_version_1_in_a_container(tmp_path: Path) -> None:
    # The group of the host's view does not exist inside; its limit is at the mount itself.
    membership = write(
        tmp_path / "cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n0::/\n"
    )
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "536870912\n")
    assert list(cgroup_limits(membership, tmp_path / "fs")) == [512 * MIB]


def test_no_control_groups_no_limits(tmp_path: Path) -> None:
    assert list(cgroup_limits(tmp_path / "absent", tmp_path)) == []
