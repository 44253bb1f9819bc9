"""What a box is in bubblewrap's words: pure functions, from values to a command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.agent.config import RUN_DIR, AgentConfig
from orchestrator.backends import boxes
from orchestrator.backends.boxes import (
    AGENT_CAPABILITIES,
    AGENT_PATH,
    CONFIG_NAME,
    HOME,
    MIB,
    MIN_FILE_BYTES,
    RESERVED_FOLDERS,
    SANDBOX_NAME,
    SHM_BYTES,
    box_environment,
)
from orchestrator.backends.local.root import LINKED, Root
from orchestrator.backends.local.settings import HOST_IMAGE
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import SandboxId
from orchestrator.repos.workspace import OverlayVolume, Workspace

HOST_ID = re.compile(r"host:[0-9a-f]{12}")
"""What the resolver makes of `host`: this machine's programs as they are now."""
START_CAPABILITY = "SETPCAP"
"""The agent empties its bounding set with it, at its start, and gives it up with the rest."""
MASKED = (
    *("/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug"),
    *("/proc/timer_list", "/proc/timer_stats"),
)
MASKED_FOLDERS = ("/proc/acpi", "/proc/asound", "/proc/scsi")
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")
"""bubblewrap covers these only where it may write to the folder itself; their files are another matter."""
OVERLAY_SCRIPT = 'mount -t overlay tiltyard -o "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupFiles:
    """Files of the box's own cgroups that its agent reads: where in the box -> file of this machine."""

    shown: tuple[tuple[str, Path], ...] = ()
    procs: tuple[Path, ...] = ()
    """`cgroup.procs` of each cgroup that the box's first process enters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPlan:
    """Everything that `command` decides from. `seccomp_fd` and `status_fd` are descriptors that bubblewrap inherits."""

    sandbox_id: SandboxId
    spec: SandboxSpec
    workspace: Workspace
    root: Root
    agent: Path
    cgroups: CgroupFiles
    host_uid: int
    """Of whoever runs this: 0 gives each box uids of its own."""


def check_spec(sandbox_id: SandboxId, spec: SandboxSpec, *, any_image: bool, rooted: bool) -> None:
    """Raises Misconfigured for what this backend cannot honour; nothing is ever ignored."""
    if spec.grader and not rooted:
        raise Misconfigured(
            "grading boxes keep tests out of reach by a second uid, and without root there is none: serve as root, or with docker"
        )
    if not SANDBOX_NAME.fullmatch(sandbox_id):
        raise Misconfigured("a sandbox id has 1 to 63 of a-z, 0-9, '_', '.', '-', and starts with a letter or digit")
    check_image(spec.image, any_image=any_image)
    if spec.network.allow:
        raise Misconfigured(
            "the local backend gives no box a network: take network.allow off the task, or serve with docker"
        )
    check_workdir(spec.workdir)
    boxes.check_limits(spec.limits)


def check_workdir(workdir: str) -> None:
    """Raises Misconfigured for a place that a box has for something else."""
    folder = workdir.rstrip("/")
    if not folder.startswith("/") or "/../" in f"{folder}/" or folder in RESERVED_FOLDERS or _inside_host(folder):
        raise Misconfigured(
            f"workdir {workdir!r} must be an absolute path in the box, outside of this machine's own folders"
        )


def check_image(image: str, *, any_image: bool) -> None:
    """Raises Misconfigured, with what to do, for an image where there is none."""
    if image == HOST_IMAGE or HOST_ID.fullmatch(image) or any_image:
        return
    raise Misconfigured(
        f"image {image!r}: the local backend has no images, only this machine's own programs, as image {HOST_IMAGE!r}; "
        "name that in the task, or serve with --host-root to run every task over this machine's programs"
    )


def _inside_host(folder: str) -> bool:
    return any(f"{folder}/".startswith(f"/{top}/") for top in (*LINKED, "usr", "etc", "proc", "sys", "dev", "run"))


def agent_config(plan: BoxPlan) -> AgentConfig:
    return boxes.agent_config(plan.workspace, plan.spec, box_environment({"LANG": "C.UTF-8"}))


def command(plan: BoxPlan, *, seccomp_fd: int, status_fd: int) -> list[str]:
    """The whole command line of the box's first process on this machine: limits, then (without root) the overlay, then bubblewrap."""
    inner = [*_limited(plan), "bwrap", *_namespaces(plan), *_files(plan)]
    inner += ["--seccomp", str(seccomp_fd), "--json-status-fd", str(status_fd), "--chdir", "/", "--"]
    inner += [AGENT_PATH, "serve", "--config", f"{RUN_DIR}/{CONFIG_NAME}"]
    if not plan.host_uid:
        return inner
    # A user namespace of the box's own: its process limit counts in there, and what is mounted there goes with it and shows nowhere else.
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "--"]
    mount = plan.workspace.workspace_mount
    if not isinstance(mount, OverlayVolume):
        return [*unshared, *inner]
    options = f"lowerdir={':'.join(mount.lowers)},upperdir={mount.upper},workdir={mount.work},userxattr"
    return [*unshared, "sh", "-ec", OVERLAY_SCRIPT, "overlay", options, str(merged(plan.workspace)), *inner]


def merged(workspace: Workspace) -> Path:
    """Where the form without root mounts its overlay, in a mount namespace of the box's own."""
    return workspace.root / "merged"


def _limited(plan: BoxPlan) -> list[str]:
    limits = plan.spec.limits
    file_bytes = max(limits.disk_mib * MIB, MIN_FILE_BYTES)
    shared = boxes.one_uid(plan.workspace)
    arguments = [f"--nofile={limits.open_files}", "--core=0", f"--fsize={file_bytes}"]
    # The kernel counts a uid's processes per user namespace, so that this holds for the box alone, where there is no cgroup to do it.
    arguments.append(f"--nproc={boxes.process_limit(limits.pids, shared=shared, own_kernel=False)}")
    if shared:
        arguments.append(f"--data={limits.memory_mib * MIB}")
    return ["prlimit", *arguments, "--"]


def _namespaces(plan: BoxPlan) -> list[str]:
    arguments = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    arguments += ["--hostname", "sandbox", "--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    arguments += ["--cap-drop", "ALL"]
    if plan.host_uid:
        uid = str(plan.workspace.uid_base)
        return [*arguments, "--unshare-user", "--uid", uid, "--gid", uid, "--disable-userns"]
    for name in (*AGENT_CAPABILITIES, START_CAPABILITY):
        arguments += ["--cap-add", f"CAP_{name}"]
    return arguments


def _files(plan: BoxPlan) -> list[str]:
    workspace, root = plan.workspace, plan.root
    arguments: list[str] = []
    for place, source in (*root.binds.items(), ("/etc", root.etc)):
        arguments += [*_parents(place), "--ro-bind", str(source), place]
    for place, text in root.links.items():
        arguments += ["--symlink", text, place]
    arguments += [*_proc(root), "--dev", "/dev"]
    arguments += ["--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    for place, source in (*plan.cgroups.shown, (AGENT_PATH, plan.agent)):
        arguments += [*_parents(place), "--ro-bind", str(source), place]
    own = ((RUN_DIR, workspace.agent_dir), ("/tmp", workspace.tmp), (HOME, workspace.home))  # noqa: S108
    for place, source in (*own, (plan.spec.workdir, _workspace_source(workspace))):
        arguments += [*_parents(place), "--bind", str(source), place]
    return [*arguments, "--remount-ro", "/"]


def _proc(root: Root) -> list[str]:
    arguments = ["--proc", "/proc"]
    for path in READ_ONLY:
        arguments += ["--ro-bind-try", path, path]
    for path in root.masked:
        arguments += ["--ro-bind", "/dev/null", path]
    for path in root.masked_folders:
        arguments += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    return arguments


def _parents(place: str) -> list[str]:
    """Folders on the way to `place`, where they are not there yet: bubblewrap by itself would close them to everybody but root."""
    parents = [str(parent) for parent in PurePosixPath(place).parents if str(parent) != "/"]
    return [word for parent in reversed(parents) for word in ("--perms", "0755", "--dir", parent)]


def _workspace_source(workspace: Workspace) -> Path:
    mount = workspace.workspace_mount
    return merged(workspace) if isinstance(mount, OverlayVolume) else mount.path


def entry(plan: BoxPlan) -> Sequence[str]:
    """cgroups that the launcher enters before it runs the command."""
    return [str(path) for path in plan.cgroups.procs]
