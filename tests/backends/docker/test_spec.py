"""The body of the create request: a golden copy, what differs without root, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.boxes import box_environment
from orchestrator.backends.docker.spec import LABEL_PREFIX, check_spec, container_spec, volume_options
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, Network, SandboxId
from orchestrator.repos.workspace import OverlayVolume
from tests.backends.docker import plans

GOLDEN = Path(__file__).with_name("golden_spec.json")


def host_config(shared: bool) -> Any:
    return container_spec(plans.plan(shared=shared))["HostConfig"]


def test_the_whole_request_is_the_golden_one() -> None:
    """To change it on purpose: write the new body into golden_spec.json and say in the commit which control moved."""
    assert container_spec(plans.plan()) == json.loads(GOLDEN.read_text())


def test_without_root_agent_and_commands_share_the_users_uid_and_hold_nothing() -> None:
    body = container_spec(plans.plan(shared=True))
    assert body["User"] == "1000:1000"
    config = host_config(shared=True)
    assert config["CapDrop"] == ["ALL"]
    assert config["CapAdd"] == []
    assert "nproc" not in {limit["Name"] for limit in config["Ulimits"]}, "it would count the user's own processes"
    workspace = next(mount for mount in config["Mounts"] if mount["Target"] == "/workspace")
    assert workspace["Type"] == "volume"


def test_the_overlay_volume_carries_no_suid_and_no_devices() -> None:
    volume = plans.workspace(shared=True).workspace_mount
    assert isinstance(volume, OverlayVolume)
    options = volume_options(volume)
    assert options["type"] == "overlay"
    assert options["o"].startswith("nosuid,nodev,lowerdir=/t/setup:/t/tree,upperdir=")


def test_limits_reach_the_engine_in_its_units() -> None:
    limits = Limits(memory_mib=64, cpus=0.5, pids=10, disk_mib=2048, open_files=100)
    config: Any = container_spec(plans.plan(spec=replace(plans.SPEC, limits=limits)))["HostConfig"]
    assert config["Memory"] == config["MemorySwap"] == 64 * 1024 * 1024
    assert (config["CpuPeriod"], config["CpuQuota"]) == (10_000, 5_000)
    ulimits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in config["Ulimits"]}
    assert ulimits == {
        "nofile": (100, 100),
        "core": (0, 0),
        "fsize": (2048 * 1024 * 1024,) * 2,
        "nproc": (10, 10),
    }
    assert config["PidsLimit"] > 10, "the agent's threads are on top of the commands' processes"


@pytest.mark.parametrize(
    ("cpus", "period_us", "quota_us"),
    [(4.0, 10_000, 40_000), (0.1, 10_000, 1_000), (0.05, 100_000, 5_000), (0.001, 100_000, 1_000)],
)
def test_C13_processor_time_comes_in_short_turns_that_the_kernel_takes(
    cpus: float, period_us: int, quota_us: int
) -> None:
    spec = replace(plans.SPEC, limits=Limits(cpus=cpus))
    config: Any = container_spec(plans.plan(spec=spec))["HostConfig"]
    assert (config["CpuPeriod"], config["CpuQuota"]) == (period_us, quota_us)


def test_grader_boxes_say_so() -> None:
    labels: Any = container_spec(plans.plan(spec=replace(plans.SPEC, grader=True)))["Labels"]
    assert labels["tiltyard.grader"] == "true"


def test_C23_the_environment_is_the_images_under_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTYARD_CANARY", "secret")
    environment = box_environment({"PATH": "/opt/bin", "HOME": "/root", "VIRTUAL_ENV": "/opt/venv"})
    assert environment["PATH"] == "/opt/bin"
    assert environment["VIRTUAL_ENV"] == "/opt/venv"
    assert environment["HOME"] == "/home/agent"
    assert "TILTYARD_CANARY" not in environment


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(plans.SPEC, network=Network(allow=("no such host",))), "network"),
        (replace(plans.SPEC, workdir="testbed"), "workdir"),
        (replace(plans.SPEC, workdir="/usr/"), "workdir"),
        (replace(plans.SPEC, workdir="/a/../etc"), "workdir"),
        (replace(plans.SPEC, limits=Limits(memory_mib=1)), "memory_mib"),
        (replace(plans.SPEC, limits=Limits(cpus=0)), "cpus"),
    ],
)
def test_what_cannot_be_honoured_is_refused(spec: SandboxSpec, words: str) -> None:
    check_spec(plans.BOX, plans.SPEC)
    with pytest.raises(Misconfigured, match=words):
        check_spec(plans.BOX, spec)


@pytest.mark.parametrize("name", ["", "../x", "-x", "X", "a/b", "a" * 64, "a b"])
def test_hostile_ids_are_refused(name: str) -> None:
    with pytest.raises(Misconfigured, match="sandbox id"):
        check_spec(SandboxId(name), plans.SPEC)


@pytest.mark.parametrize("key", ["tiltyard.sandbox", "tiltyard.deployment", "tiltyard.anything"])
def test_C24_reserved_labels_are_refused(key: str) -> None:
    check_spec(plans.BOX, replace(plans.SPEC, labels={"not." + key: "1"}))
    with pytest.raises(Misconfigured, match=LABEL_PREFIX):
        check_spec(plans.BOX, replace(plans.SPEC, labels={key: "stolen"}))


def test_C12_gvisors_own_threads_have_room_and_its_process_limit_holds_without_uids_of_the_boxs_own() -> None:
    limits = Limits(pids=100)
    spec = replace(plans.SPEC, limits=limits)

    def hosted(*, shared: bool) -> Any:
        return container_spec(replace(plans.plan(shared=shared, spec=spec), runtime="runsc", own_kernel=True))[
            "HostConfig"
        ]

    split, shared = hosted(shared=False), hosted(shared=True)
    assert split["Runtime"] == "runsc"
    assert split["PidsLimit"] == 256 + 8 * 100
    assert {"Name": "nproc", "Soft": 100, "Hard": 100} in split["Ulimits"]
    assert {"Name": "nproc", "Soft": 164, "Hard": 164} in shared["Ulimits"]
