"""The posture checks see a weakened box: each flag taken away turns its control red, and only then."""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.spec import BoxPlan, container_spec
from orchestrator.backends.seccomp import profile
from orchestrator.models import SandboxId
from orchestrator.repos.workspace import HostPath, Workspace
from tests.backends.docker import plans
from tests.backends.docker.posture import violated
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

PROBE = Path(__file__).with_name("probe.py").read_text()
UID = 1_900_000
"""Outside the blocks that boxes claim."""


@dataclass(frozen=True)
class Bench:
    """Runs the probe in a container made from a create request, as the commands' uid."""

    engine: Engine
    plan: BoxPlan

    async def findings(self, weaken: Callable[[Any], None] | None = None) -> Mapping[str, Any]:
        body: Any = container_spec(self.plan)
        body["Entrypoint"], body["Cmd"] = ["python3", "-c", PROBE], []
        body["User"] = f"{UID}:{UID}"
        body["HostConfig"]["LogConfig"] = {"Type": "json-file"}
        if weaken:
            weaken(body)
        name = f"tiltyard-test-{secrets.token_hex(6)}"
        try:
            await self.engine.create(name, body)
            await self.engine.start(name)
            state = await self.engine.wait_exit(name, deadline=time.monotonic() + 30)
            output = await self.engine.log_tail(name, 100)
        finally:
            await self.engine.remove(name)
        assert state is not None
        assert state.exit_code == 0, output
        found: Mapping[str, Any] = json.loads(output)
        return found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    folders = {name: tmp_path / name for name in ("agent_dir", "workspace", "tmp", "home")}
    for folder in folders.values():
        folder.mkdir()
        os.chown(folder, UID, UID)
    os.chown(folders["agent_dir"], 0, 0)
    tmp_path.chmod(0o755)
    return Workspace(
        sandbox_id=SandboxId("mutant"),
        root=tmp_path,
        agent_dir=folders["agent_dir"],
        workspace_mount=HostPath(path=folders["workspace"]),
        tmp=folders["tmp"],
        home=folders["home"],
        uid_base=UID,
        uid_count=64,
        capped=True,
    )


@pytest.fixture
async def bench(engine: Engine, workspace: Workspace) -> Bench:
    image = await engine.image(plans.SPEC.image)
    assert image is not None, "run sandbox_images/build"
    agent = Path(shutil.which("true") or "/bin/true")
    plan = replace(plans.plan(), workspace=workspace, image_id=image.id, agent=agent, seccomp=profile())
    return Bench(engine, plan)


def unconfined(body: Any) -> None:
    body["HostConfig"]["SecurityOpt"] = ["no-new-privileges", "seccomp=unconfined"]


def new_privileges(body: Any) -> None:
    body["HostConfig"]["SecurityOpt"].remove("no-new-privileges")


def writable_root(body: Any) -> None:
    body["HostConfig"]["ReadonlyRootfs"] = False
    body["User"] = "0:0"


def engine_capabilities(body: Any) -> None:
    body["HostConfig"] |= {"CapDrop": [], "CapAdd": []}
    body["User"] = "0:0"


def engine_paths(body: Any) -> None:
    body["HostConfig"] |= {"MaskedPaths": [], "ReadonlyPaths": []}
    body["User"] = "0:0"


def host_processes(body: Any) -> None:
    body["HostConfig"]["PidMode"] = "host"


def host_network(body: Any) -> None:
    body["HostConfig"]["NetworkMode"] = "host"


def more_devices(body: Any) -> None:
    body["HostConfig"]["Devices"] = [
        {"PathOnHost": "/dev/loop-control", "PathInContainer": "/dev/loop-control", "CgroupPermissions": "rwm"}
    ]


def core_files(body: Any) -> None:
    for limit in body["HostConfig"]["Ulimits"]:
        if limit["Name"] == "core":
            limit |= {"Soft": 1024, "Hard": 1024}


async def test_the_unchanged_request_violates_nothing(bench: Bench) -> None:
    # These folders lie on the machine's own disk; a box's are mounted nosuid and nodev, which test_posture.py sees.
    assert violated(await bench.findings()) == {"C6"}


@pytest.mark.parametrize(
    ("weaken", "turns_red"),
    [
        (unconfined, {"C3"}),
        (new_privileges, {"C2"}),
        (engine_capabilities, {"C1", "C1 bounding", "C20"}),
        (writable_root, {"C6"}),
        (engine_paths, {"C7"}),
        (host_processes, {"C10"}),
        (host_network, {"C10", "C20"}),
        (more_devices, {"C9"}),
        (core_files, {"C19"}),
    ],
)
async def test_a_weakened_request_turns_its_control_red(
    bench: Bench, weaken: Callable[[Any], None], turns_red: set[str]
) -> None:
    assert violated(await bench.findings(weaken)) >= turns_red
