"""What a box is, decided from values alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.local.root import Root
from orchestrator.backends.local.spec import BoxPlan, CgroupFiles, agent_config, check_spec, command
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, Network, SandboxId
from orchestrator.repos.workspace import HostPath, OverlayVolume, Workspace

BOX = SandboxId("box-1")
SPEC = SandboxSpec(image="host", template=None, limits=Limits(memory_mib=64, pids=32))
ROOT = Root(
    binds={"/usr": Path("/usr"), "/opt/go": Path("/opt/go")},
    links={"/bin": "usr/bin"},
    etc=Path("/state/etc"),
    masked=("/proc/keys",),
    masked_folders=("/proc/acpi",),
)
WORKSPACE = Workspace(
    sandbox_id=BOX,
    root=Path("/state/box-1"),
    agent_dir=Path("/state/box-1/agent"),
    workspace_mount=HostPath(path=Path("/state/box-1/workspace")),
    tmp=Path("/state/box-1/tmp"),
    home=Path("/state/box-1/home"),
    uid_base=1_000_064,
    uid_count=64,
    capped=True,
)
PLAIN = replace(
    WORKSPACE,
    workspace_mount=OverlayVolume(lowers=("/t/a", "/t/b"), upper=Path("/state/u"), work=Path("/state/w")),
    uid_base=1234,
    uid_count=1,
    capped=False,
)


def plan(workspace: Workspace = WORKSPACE, spec: SandboxSpec = SPEC, host_uid: int = 0) -> BoxPlan:
    cgroups = CgroupFiles(shown=(("/sys/fs/cgroup/pids/pids.max", Path("/cg/pids.max")),))
    return BoxPlan(
        sandbox_id=BOX,
        spec=spec,
        workspace=workspace,
        root=ROOT,
        agent=Path("/state/agent"),
        cgroups=cgroups,
        host_uid=host_uid,
    )


def line(made: BoxPlan) -> list[str]:
    return command(made, seccomp_fd=7, status_fd=8)


def pairs(words: list[str], option: str) -> list[tuple[str, str]]:
    return [(words[n + 1], words[n + 2]) for n, word in enumerate(words) if word == option]


def test_only_the_boxs_own_places_are_writable() -> None:
    assert pairs(line(plan()), "--bind") == [
        ("/state/box-1/agent", "/run/tiltyard"),
        ("/state/box-1/tmp", "/tmp"),
        ("/state/box-1/home", "/home/agent"),
        ("/state/box-1/workspace", "/workspace"),
    ]


def test_what_is_shown_of_the_machine_is_an_allow_list() -> None:
    assert [source for source, _ in pairs(line(plan()), "--ro-bind")] == [
        *("/usr", "/opt/go", "/state/etc", "/dev/null", "/cg/pids.max", "/state/agent"),
    ]


@pytest.mark.parametrize(
    "word",
    ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--new-session", "--clearenv", "--seccomp"],
)
def test_every_box_is_closed(word: str) -> None:
    assert word in line(plan())
    assert word in line(plan(PLAIN, host_uid=1234))


def test_with_root_the_agent_keeps_what_its_start_needs_and_there_is_no_user_namespace() -> None:
    words = line(plan())
    assert {words[n + 1] for n, word in enumerate(words) if word == "--cap-add"} == {
        *("CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP")
    }
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert "--unshare-user" not in words
    assert agent_config(plan()).mode == "split"


def test_without_root_nothing_is_kept_and_the_overlay_is_the_boxs_own() -> None:
    words = line(plan(PLAIN, host_uid=1234))
    assert words[:5] == ["unshare", "--user", "--map-root-user", "--mount", "--"]
    assert "lowerdir=/t/a:/t/b,upperdir=/state/u,workdir=/state/w,userxattr" in words
    assert ("/state/box-1/merged", "/workspace") in pairs(words, "--bind")
    assert "--cap-add" not in words
    assert words[words.index("--uid") + 1] == "1234"
    assert "--disable-userns" in words
    assert agent_config(plan(PLAIN, host_uid=1234)).mode == "one_uid"


def test_the_processes_limit_is_of_the_uid_or_of_the_namespace() -> None:
    assert "--nproc=32" in line(plan())
    assert "--nproc=96" in line(plan(PLAIN, host_uid=1234))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "tiltyard/python:3.11"}, "--host-root"),
        ({"image": "host:nonsense"}, "--host-root"),
        ({"network": Network(allow=("example.org",))}, "network"),
        ({"workdir": "/usr/src/app"}, "workdir"),
        ({"workdir": "/etc"}, "workdir"),
        ({"workdir": "relative"}, "workdir"),
        ({"limits": Limits(memory_mib=1)}, "limits"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        check_spec(BOX, replace(SPEC, **changes), any_image=False, rooted=True)  # type: ignore[arg-type]


def test_what_can_be_honoured_is_not() -> None:
    for image in ("host", "host:0123456789ab"):
        check_spec(BOX, replace(SPEC, image=image), any_image=False, rooted=True)
    check_spec(BOX, replace(SPEC, image="tiltyard/python:3.11"), any_image=True, rooted=True)
    check_spec(BOX, replace(SPEC, workdir="/testbed"), any_image=False, rooted=True)
    check_spec(BOX, replace(SPEC, grader=True), any_image=False, rooted=True)


def test_a_grading_box_needs_root() -> None:
    with pytest.raises(Misconfigured, match="second uid"):
        check_spec(BOX, replace(SPEC, grader=True), any_image=False, rooted=False)
