"""What a box must look like from outside, field by field, under each runtime. Whatever is not named here must not be there."""

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.backends.boxes import AGENT_PATH, DEFAULT_PATH, FIXED_ENVIRONMENT, HOME, MIB, MIN_FILE_BYTES
from orchestrator.backends.docker.spec import MASKED_PATHS, READONLY_PATHS, pids_limit
from tests.integrity import outside
from tests.integrity.live import Live, parent
from tests.integrity.outside import CGROUP_ROOT, NAMESPACES, Mount, Posture, Rights, unlike

KILL_SETGID_SETUID = 0xE0
SENTRY = 0x8001F
"""CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_PTRACE, all of them in the sentry's own user namespace."""
WHOLE_MAP = "0 0 4294967295"
NONE = frozenset[str]()
DEBIAN = frozenset(
    {
        "bin",
        "boot",
        "dev",
        "etc",
        "home",
        "lib",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "sbin",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var",
    }
)
RUN = "/run/tiltyard"


def agent(live: Live) -> Posture:
    """PID 1 of a box on runc. Threads that do file work act as the commands' uid while they do, and hold nothing then."""
    limits, rights = live.spec.limits, _rights(uid=0, groups=0, held=KILL_SETGID_SETUID)
    steps_down = (0, live.uid_base, 0, live.uid_base)
    return Posture(
        threads=frozenset({unlike(replace(rights, uids=steps_down, gids=steps_down, effective=0), rights)}),
        rights=rights,
        root=_root(),
        mounts=_mounts(live),
        descriptors=frozenset(
            {
                "null",
                "pipe",
                "socket",
                "anon_inode:[eventpoll]",
                "anon_inode:[eventfd]",
                f"{RUN}/state/journal",
                f"{RUN}/trusted",
            }
            | {"/", "/proc", "/tmp", HOME, live.spec.workdir}
            | ({str(CGROUP_ROOT)} if Path("/proc/self/cgroup").read_text().count("\n") > 1 else set())
        ),
        limits=_limits(live),
        uid_map=WHOLE_MAP,
        gid_map=WHOLE_MAP,
        environment={"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", "HOSTNAME": "sandbox", "HOME": "/root"},
        oom_score_adj=0,
        cgroups=dict.fromkeys(outside.cgroups(Path("/proc/self"), "no container"), "own"),
        caps={
            "memory_bytes": limits.memory_mib * MIB,
            "memory_and_swap_bytes": limits.memory_mib * MIB,
            "pids": pids_limit(limits.pids, own_kernel=False),
            "cpu_percent": round(100 * limits.cpus),
        },
    )


def command(live: Live) -> Posture:
    """A command on runc: no capability, a uid of the box's own, a group as its tag, three descriptors, no folder among them."""
    return replace(
        agent(live),
        threads=NONE,
        rights=_rights(uid=live.uid_base, groups=1, held=0),
        descriptors=frozenset({"null", "pipe"}),
        environment={"PATH": DEFAULT_PATH, **FIXED_ENVIRONMENT},
        oom_score_adj=1000,
    )


def background(live: Live, oom_score_adj: int) -> Posture:
    """What a command left behind, its output sent to /dev/null by a shell that sets PWD.

    A child that a command starts within its first instants may miss the score that the agent gives the command: it then has the agent's own.
    Nothing rests on it: any process may lower its score to that.
    """
    assert oom_score_adj in (0, 1000)
    foreground = replace(command(live), oom_score_adj=oom_score_adj)
    return replace(
        foreground, descriptors=frozenset({"null"}), environment={**foreground.environment, "PWD": live.spec.workdir}
    )


def sentry(live: Live) -> Posture:
    """gVisor's kernel, which is all of the box that this machine's kernel sees: almost nothing to hold on to."""
    on_runc = agent(live)
    hybrid = len(on_runc.cgroups) > 1
    rights = _rights(uid=0, groups=0, held=SENTRY)
    return replace(
        on_runc,
        threads=NONE,
        rights=replace(rights, namespaces={**rights.namespaces, "user": "own", "cgroup": "host"}),
        root=frozenset({"etc", "proc"}),
        mounts={"/": Mount(type="tmpfs", flags=frozenset({"ro"}))},
        descriptors=SENTRY_DESCRIPTORS,
        limits={},
        environment={},
        cgroups={**on_runc.cgroups, "unified": "root" if hybrid else "own"},
        caps={**on_runc.caps, "pids": pids_limit(live.spec.limits.pids, own_kernel=True)},
    )


SENTRY_DESCRIPTORS = frozenset(
    {"null", "pipe", "socket", "memfd", "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:seccomp notify"}
    | {"the box's own files", "its log"}
)


def of_sentry(found: Posture) -> Posture:
    """What is to be compared: files that its helper hands it lie below /root of the helper's mounts, and are the box's own. Limits and environment of
    commands are the sentry's to keep (the conformance suite looks at those); its own say nothing, but that no variable may come from outside."""
    kinds = (
        ("foreign:file:/root/", "the box's own files"),
        ("foreign:folder:/root", "the box's own files"),
        ("foreign:file:/run/", "its log"),
    )
    named = {each: next((kind for start, kind in kinds if each.startswith(start)), each) for each in found.descriptors}
    environment = {name: value for name, value in found.environment.items() if name != "RUNSC_START_TIME_NANOS"}
    seen = frozenset(named.values()) | SENTRY_DESCRIPTORS  # a box need not hold one of each kind at any moment
    return replace(found, descriptors=seen, environment=environment, limits={}, oom_score_adj=0)


def _rights(*, uid: int, groups: int, held: int) -> Rights:
    bounding = held or KILL_SETGID_SETUID
    return Rights(
        uids=(uid,) * 4,
        gids=(uid,) * 4,
        groups=groups,
        inheritable=0,
        permitted=held,
        effective=held,
        bounding=bounding,
        ambient=0,
        no_new_privs=1,
        seccomp=2,
        namespaces={name: "host" if name.startswith(("time", "user")) else "own" for name in NAMESPACES},
    )


def _root() -> frozenset[str]:
    wide = {"lib64"} if platform.machine() == "x86_64" else set()
    return DEBIAN | wide | {".dockerenv", AGENT_PATH.lstrip("/"), "workspace"}


def _mounts(live: Live) -> Mapping[str, Mount]:
    quiet = {"nosuid", "nodev", "noexec"}
    own = _mount("ext4", "rw", "nosuid", "nodev")
    host = outside.named(outside.mountinfo(Path("/proc/self")))
    disk = _type_of(live.agent_dir, host)
    engine = _type_of(Path(live.inspected["ResolvConfPath"]), host)
    found = {
        "/": _mount("overlay", "ro"),
        "/proc": _mount("proc", "rw", *quiet),
        "/dev": _mount("tmpfs", "rw", "nosuid"),
        "/dev/pts": _mount("devpts", "rw", "nosuid", "noexec"),
        "/dev/mqueue": _mount("mqueue", "rw", *quiet),
        "/dev/shm": _mount("tmpfs", "rw", *quiet),
        "/sys": _mount("sysfs", "ro", *quiet),
        AGENT_PATH: _mount(disk, "ro"),
        RUN: _mount(disk, "rw"),
        "/tmp": own,
        HOME: own,
        live.spec.workdir: own,
        **dict.fromkeys(("/etc/resolv.conf", "/etc/hostname", "/etc/hosts"), _mount(engine, "ro")),
        **{path: _mount("proc", "ro", *quiet) for path in READONLY_PATHS if os.path.exists(path)},
        **{path: Mount(type="mask", flags=NONE) for path in MASKED_PATHS if os.path.exists(path)},
    }
    if (CGROUP_ROOT / "memory").is_dir():
        found |= {str(CGROUP_ROOT): _mount("tmpfs", "rw", *quiet), f"{CGROUP_ROOT}/*": _mount("cgroup", "ro", *quiet)}
    else:
        found[str(CGROUP_ROOT)] = _mount("cgroup2", "ro", *quiet)
    return found


def _mount(kind: str, *flags: str) -> Mount:
    return Mount(type=kind, flags=frozenset(flags))


def _type_of(path: Path, host: Mapping[str, Mount]) -> str:
    """The file system that holds `path` on this machine."""
    return next(host[str(folder)].type for folder in (path, *path.parents) if str(folder) in host)


def _limits(live: Live) -> Mapping[str, tuple[str, str]]:
    """Ours, over what the engine's own process hands down."""
    limits = live.spec.limits
    handed_down = outside.limits(Path(f"/proc/{parent(live.pid)}"))
    ours = {
        "Max file size": max(limits.disk_mib * MIB, MIN_FILE_BYTES),
        "Max core file size": 0,
        "Max processes": limits.pids,
        "Max open files": limits.open_files,
    }
    return {**handed_down, **{name: (str(value), str(value)) for name, value in ours.items()}}
