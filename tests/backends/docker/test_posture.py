"""What a real box lets its commands do: the probe's findings from inside, and a look from outside."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DockerSettings
from tests.backends.docker import posture
from tests.backends.docker.boxes import Box
from tests.backends.docker.conftest import Open
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

PROBE = Path(__file__).with_name("probe.py").read_text()
SECRET = "canary-7f3a9c"


@pytest.fixture(scope="module")
async def found(shared: Box) -> Mapping[str, Any]:
    findings: Mapping[str, Any] = json.loads(await shared.text(f"python3 - <<'PROBE'\n{PROBE}\nPROBE"))
    return findings


@pytest.fixture(scope="module")
async def root_pid(shared: Box, engine: Engine) -> int:
    state = await engine.inspect(f"tiltyard-{shared.sandbox.id}")
    assert state is not None
    return state.pid


@pytest.mark.parametrize("control", sorted(posture.CONTROLS))
async def test_inside_each_control_holds(found: Mapping[str, Any], control: str) -> None:
    assert posture.CONTROLS[control](found), found


async def test_C6_what_must_be_writable_is(found: Mapping[str, Any]) -> None:
    written = {folder for folder, answer in found["writes"].items() if answer == "ok"}
    assert written == posture.WRITABLE


async def test_C20_loopback_carries_bytes(found: Mapping[str, Any]) -> None:
    assert found["loopback"] == "ok"


async def test_the_agent_is_out_of_reach(found: Mapping[str, Any]) -> None:
    assert found["agent_socket"] in ("EACCES", "EPERM")
    assert found["agent_state"] == "EACCES"
    assert found["agent_memory"] in ("EACCES", "EPERM", "ENOENT")
    assert found["agent_signal"] == "EPERM"


async def test_C5_commands_run_as_a_uid_of_the_boxs_own(found: Mapping[str, Any]) -> None:
    assert len(set(found["uid"])) == 1
    assert found["uid"][0] >= 1_000_000


async def test_C10_a_box_sees_its_own_processes_only(found: Mapping[str, Any]) -> None:
    assert "1" in found["processes"]
    assert len(found["processes"]) < 10
    assert str(os.getpid()) not in found["processes"] or os.getpid() < 1000


async def test_C10_two_boxes_share_no_namespace(found: Mapping[str, Any], opened: Open) -> None:
    other = await opened()
    names = "cgroup ipc mnt net pid uts"
    theirs = (await other.text(f"for n in {names}; do readlink /proc/self/ns/$n; done")).split()
    ours = [found["namespaces"][name] for name in names.split()]
    assert not set(ours) & set(theirs)
    assert set(ours) == {found["namespaces"][name] for name in names.split()}
    uid = int(await other.text("id -u"))
    assert uid != found["uid"][0], "a uid of its own, so that no per-uid limit is shared"


async def test_C1_C2_outside_the_agent_has_three_capabilities_and_commands_none(shared: Box, root_pid: int) -> None:
    agent = status(root_pid)
    assert int(agent["CapEff"], 16) == 0xE0
    assert agent["NoNewPrivs"] == "1"
    assert agent["Seccomp"] == "2"
    await shared.text("sleep 30 >/dev/null 2>&1 &")
    children = [pid for pid in pids() if parent(pid) == root_pid]
    assert children, "the command that was left in the background"
    for pid in children:
        held = status(pid)
        assert all(int(held[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
        assert held["NoNewPrivs"] == "1"
        assert held["Uid"].split()[0] != "0"


async def test_C2_a_setuid_program_gives_no_rights(shared: Box) -> None:
    assert await shared.text("test -u /usr/bin/su && echo there") == "there\n", (
        "the control: a setuid-root program is here"
    )
    answer = await shared.sh("echo | su -c id")
    assert answer.exit_code != 0
    assert await shared.text("/usr/bin/newgrp </dev/null >/dev/null 2>&1; id -u") != "0\n"


async def test_C23_nothing_of_the_server_is_in_the_environment(
    backend: DockerBackend, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTYARD_TOKEN", SECRET)
    box = await opened()
    everything = await box.text(
        "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /run/tiltyard/config.json 2>/dev/null | tr '\\0' '\\n'; true"
    )
    assert SECRET not in everything
    assert "HOME=/home/agent" in everything, "the control: the environment is there to be read"


async def test_C25_boxes_run_from_an_image_id(shared: Box, engine: Engine) -> None:
    state = await engine.inspect(f"tiltyard-{shared.sandbox.id}")
    assert state is not None
    assert state.image.startswith("sha256:")
    assert state.runtime == "runc"


async def test_labels_say_whose_box_it_is(shared: Box, engine: Engine, settings: DockerSettings) -> None:
    state = await engine.inspect(f"tiltyard-{shared.sandbox.id}")
    assert state is not None
    labels = state.labels
    assert labels["tiltyard.deployment"] == settings.deployment
    assert labels["tiltyard.host"] == "test"
    assert labels["tiltyard.sandbox"] == shared.sandbox.id
    assert float(labels["tiltyard.expires"]) > float(labels["tiltyard.created"]) > 1_700_000_000


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent(pid: int) -> int:
    try:
        return int(status(pid)["PPid"])
    except OSError:
        return 0
