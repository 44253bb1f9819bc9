"""Which cgroups a machine has, what is written into them, and that they go with their processes."""

import secrets
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.backends.local.cgroups import Cgroups, Hierarchies, find, present, v1_values, v2_values
from orchestrator.models import Limits, SandboxId
from tests.needs import needs

V1 = """\
30 20 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 20 0:28 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""
V2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = V1.replace("pids", "devices") + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
LIMITS = Limits(memory_mib=64, pids=32, cpus=0.5)


def test_version_1_has_a_mount_for_each() -> None:
    found = find(V1, "")
    assert found.v1["cpu"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.missing == ()
    assert found.unified is None


def test_version_2_has_one_for_all() -> None:
    found = find(V2, "cpuset cpu io memory pids")
    assert (found.unified, found.in_unified, found.v1) == (Path("/sys/fs/cgroup"), ("memory", "pids", "cpu"), {})
    assert found.missing == ()


def test_a_hybrid_machine_has_both_and_what_is_missing_is_named() -> None:
    assert find(HYBRID, "pids").missing == ()
    assert find(HYBRID, "").missing == ("pids",)
    assert find("", "").missing == ("memory", "pids", "cpu")


def test_limits_are_written_in_an_order_that_the_kernel_takes() -> None:
    assert [name for name, _, _ in v1_values("memory", LIMITS)] == [
        *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"),
    ]
    assert v1_values("pids", LIMITS) == [("pids.max", "96", True)]
    assert v2_values("memory", LIMITS)[0] == ("memory.max", str(64 * 2**20), True)
    quota, period = v2_values("cpu", LIMITS)[0][1].split()
    assert int(quota) * 2 == int(period)


def test_version_2_is_laid_out_below_its_root(tmp_path: Path) -> None:
    unified = Hierarchies(v1={}, unified=tmp_path, in_unified=("memory", "pids", "cpu"))
    made = Cgroups("d", lambda: unified).make(SandboxId("b"), LIMITS)
    box = tmp_path / "tiltyard" / "d" / "b"
    assert made.procs == (box / "cgroup.procs",)
    assert (box / "pids.max").read_text() == "96"
    for parent in (tmp_path / "tiltyard", tmp_path / "tiltyard" / "d"):
        assert (parent / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


@needs("root")
@pytest.mark.parametrize("version", [1, 2])
def test_a_box_can_be_laid_out_while_the_last_one_goes(version: int) -> None:
    """Whose end takes the parents away. Version 2 needs no controller for that."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]
    unified = Path(points[0]) if points and version == 2 else None
    found = Hierarchies(v1=present().v1 if version == 1 else {}, unified=unified)
    if not found.v1 and not found.unified:
        pytest.skip("this machine has no such cgroups, or this root may not make any")
    groups = Cgroups(f"test-{secrets.token_hex(4)}", lambda: found)

    def come_and_go(name: str) -> None:
        for lap in range(100):
            try:
                groups.make(SandboxId(f"{name}-{lap}"), LIMITS)
            finally:
                groups.remove(SandboxId(f"{name}-{lap}"))

    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(come_and_go, name) for name in "abcd"]:
            each.result()
    assert groups.names() == set()


@needs("root")
def test_a_group_is_found_by_name_and_goes_with_what_runs_in_it() -> None:
    groups, box = Cgroups(f"test-{secrets.token_hex(4)}"), SandboxId("b-1")
    if present().missing:
        pytest.skip("this root may not make cgroups")
    made = groups.make(box, LIMITS)
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        for procs in made.procs:
            procs.write_text(str(sleeper.pid))
        assert groups.names() == {box}
        groups.remove(box)
        assert sleeper.wait(timeout=10) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()
    assert groups.names() == set()
    assert not [procs for procs in made.procs if procs.parent.parent.exists()]
    groups.remove(box)
