"""Verdicts on an engine, as functions of what it says of itself; and a look at the real one."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.checks import Verdict
from orchestrator.backends.docker import doctor
from orchestrator.backends.docker.facts import EngineFacts
from orchestrator.backends.docker.settings import DockerSettings
from tests.needs import needs

GOOD = EngineFacts(
    version="29.4.3",
    api_version="1.52",
    runtimes=("io.containerd.runc.v2", "runc", "runsc"),
    runc_version="1.3.3",
    cgroup_version="2",
    live_restore=True,
    storage_driver="overlay2",
    backing_filesystem="extfs",
    root_dir=Path("/var/lib/docker"),
    security_options=("name=seccomp,profile=builtin", "name=cgroupns"),
    memory_limit=True,
    swap_limit=True,
    pids_limit=True,
    cpu_quota=True,
)


def verdict_of(facts: EngineFacts, name: str, runtime: str = "runc", euid: int = 0) -> Verdict:
    return next(check.verdict for check in doctor.verdicts(facts, runtime, euid) if check.name == name)


def test_a_good_engine_has_nothing_to_mend() -> None:
    assert {check.verdict for check in doctor.verdicts(GOOD, "runc", 0)} == {Verdict.OK}


@pytest.mark.parametrize(
    ("facts", "name", "expected"),
    [
        (replace(GOOD, api_version="1.40"), "engine", Verdict.FAIL),
        (replace(GOOD, runtimes=("runsc",)), "runtime", Verdict.FAIL),
        (replace(GOOD, runc_version="1.1.5+ds1-1+deb12u1"), "runtime", Verdict.WARN),
        (replace(GOOD, runc_version=""), "runtime", Verdict.WARN),
        (replace(GOOD, swap_limit=False), "cgroups", Verdict.FAIL),
        (replace(GOOD, pids_limit=False), "cgroups", Verdict.FAIL),
        (replace(GOOD, security_options=()), "seccomp", Verdict.FAIL),
        (replace(GOOD, security_options=("name=seccomp", "name=userns")), "user namespaces", Verdict.FAIL),
        (replace(GOOD, security_options=("name=seccomp", "name=rootless")), "user namespaces", Verdict.FAIL),
        (replace(GOOD, live_restore=False), "live-restore", Verdict.WARN),
        (replace(GOOD, storage_driver="vfs"), "storage driver", Verdict.WARN),
    ],
)
def test_each_gap_is_told_with_its_fix(facts: EngineFacts, name: str, expected: Verdict) -> None:
    assert verdict_of(facts, name) is expected
    assert next(check.fix for check in doctor.verdicts(facts, "runc", 0) if check.name == name)


def test_without_root_the_gaps_are_named() -> None:
    assert verdict_of(GOOD, "rights", euid=1000) is Verdict.WARN


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("1.2.7", False),
        ("1.2.8", True),
        ("1.2.10", True),
        ("1.3.2", False),
        ("1.3.3", True),
        ("1.4.0", True),
        ("1.5.1", True),
        ("2.0", True),
        ("1.1.15", False),
        ("v1.3.3+dev", True),
        ("nonsense", False),
    ],
)
def test_C8_the_runtimes_version_is_judged_by_line(version: str, fixed: bool) -> None:
    assert doctor.runc_is_fixed(version) is fixed


def test_little_disk_is_told() -> None:
    assert doctor.check_disk(doctor.Disk(folder="/x", free_bytes=1024)).verdict is Verdict.WARN
    assert doctor.check_disk(doctor.Disk(folder="/x", free_bytes=1 << 40)).verdict is Verdict.OK


@pytest.mark.anyio
async def test_an_engine_that_is_down_is_one_verdict(tmp_path: Path) -> None:
    settings = DockerSettings(deployment="d", host_id="h", state_dir=tmp_path, socket=f"unix://{tmp_path}/none.sock")
    checks = await doctor.inspect_engine(settings)
    assert [check.verdict for check in checks] == [Verdict.FAIL]
    assert "docker" in checks[0].fix


@pytest.mark.anyio
async def test_a_remote_engine_is_one_verdict(tmp_path: Path) -> None:
    settings = DockerSettings(deployment="d", host_id="h", state_dir=tmp_path, socket="tcp://1.2.3.4:2375")
    assert [check.verdict for check in await doctor.inspect_engine(settings)] == [Verdict.FAIL]


@pytest.mark.anyio
@needs("docker")
async def test_this_machines_engine_is_described(tmp_path: Path) -> None:
    settings = DockerSettings(deployment="d", host_id="h", state_dir=tmp_path / "not" / "yet")
    checks = {check.name: check for check in await doctor.inspect_engine(settings)}
    assert checks["engine"].verdict is Verdict.OK
    assert checks["image"].verdict is Verdict.OK, checks["image"]
    assert "disk" in checks
