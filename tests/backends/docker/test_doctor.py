"""Verdicts on an engine, as functions of what it says of itself; and a look at the real one."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.checks import Check, Verdict
from orchestrator.backends.docker import doctor
from orchestrator.backends.docker.facts import EngineFacts, Registration
from orchestrator.backends.docker.runtimes import Kind, Program
from orchestrator.backends.docker.settings import DockerSettings
from tests.needs import needs

GOOD = EngineFacts(
    version="29.4.3",
    api_version="1.52",
    runtimes={"io.containerd.runc.v2": Registration(path="runc"), "runc": Registration(path="runc")},
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


RUNC = Program(kind=Kind.RUNC, version="1.3.3")
SETTINGS = DockerSettings(deployment="d", host_id="h", state_dir=Path("/nowhere"))


def check_of(facts: EngineFacts, name: str, euid: int = 0, broken_filter: str = "") -> Check:
    return next(check for check in doctor.verdicts(facts, SETTINGS, RUNC, euid, broken_filter) if check.name == name)


def test_a_good_engine_has_nothing_to_mend() -> None:
    assert {check.verdict for check in doctor.verdicts(GOOD, SETTINGS, RUNC, 0)} == {Verdict.OK}


@pytest.mark.parametrize(
    ("facts", "name", "expected"),
    [
        (replace(GOOD, api_version="1.40"), "engine", Verdict.FAIL),
        (replace(GOOD, runtimes={"io.containerd.runc.v2": Registration(path="runc")}), "runtime", Verdict.FAIL),
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
    assert check_of(facts, name).verdict is expected
    assert check_of(facts, name).fix


def test_without_root_the_gaps_are_named() -> None:
    assert check_of(GOOD, "rights", euid=1000).verdict is Verdict.WARN


def test_a_filter_that_cannot_be_used_is_named() -> None:
    check = check_of(GOOD, "seccomp", broken_filter="the system call filter /x.json cannot be read")
    assert (check.verdict, "/x.json" in check.detail) == (Verdict.FAIL, True)


def test_runtimes_that_are_there_are_listed() -> None:
    more = {**GOOD.runtimes, "runsc": Registration(path="/usr/local/bin/runsc"), "kata": Registration(path="kata")}
    assert (
        check_of(replace(GOOD, runtimes=more), "runtimes").detail == "kata (Kata), runc (runc), runsc (gVisor), 1 more"
    )


def test_what_allow_lists_lack_is_told_with_its_fix() -> None:
    assert doctor.check_networks(0, []).verdict is Verdict.OK
    assert "root" in doctor.check_networks(1000, []).fix
    assert doctor.check_networks(0, ["nsenter"]).verdict is Verdict.WARN
    assert "nsenter" in doctor.check_networks(0, ["nsenter"]).detail


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


@pytest.mark.anyio
@needs("docker")
async def test_C3_a_missing_filter_is_told(tmp_path: Path) -> None:
    settings = DockerSettings(deployment="d", host_id="h", state_dir=tmp_path, seccomp_profile=tmp_path / "none.json")
    checks = {check.name: check for check in await doctor.inspect_engine(settings)}
    assert checks["seccomp"].verdict is Verdict.FAIL
    assert "none.json" in checks["seccomp"].detail
