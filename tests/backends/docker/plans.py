"""Plans of boxes as values, for tests that need no engine."""

from pathlib import Path

from orchestrator.backends.docker.spec import BoxPlan
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId
from orchestrator.repos.workspace import HostPath, OverlayVolume, Workspace

BOX = SandboxId("box-1")
ROOT = Path("/srv/boxes/box-1")
SPEC = SandboxSpec(image="tiltyard/python:3.11", template=None, limits=Limits(), labels={"team": "blue"})


def workspace(*, shared: bool = False) -> Workspace:
    overlay = OverlayVolume(lowers=("/t/setup", "/t/tree"), upper=ROOT / "upper", work=ROOT / "work")
    return Workspace(
        sandbox_id=BOX,
        root=ROOT,
        agent_dir=ROOT / "agent",
        workspace_mount=overlay if shared else HostPath(path=ROOT / "workspace"),
        tmp=ROOT / "tmp",
        home=ROOT / "home",
        uid_base=1000 if shared else 1_000_064,
        uid_count=1 if shared else 64,
        capped=not shared,
    )


def plan(*, shared: bool = False, spec: SandboxSpec = SPEC) -> BoxPlan:
    return BoxPlan(
        sandbox_id=BOX,
        spec=spec,
        workspace=workspace(shared=shared),
        image_id="sha256:" + "a" * 64,
        image_environment={"PATH": "/opt/bin:/usr/bin:/bin", "HOME": "/root"},
        agent=Path("/srv/agent/ff/tiltyard-agent"),
        seccomp='{"defaultAction":"SCMP_ACT_ERRNO"}',
        deployment="default",
        host_id="host-a",
        runtime="runc",
        own_kernel=False,
        created_at=1_700_000_000.0,
        expires_at=1_700_086_400.0,
    )
