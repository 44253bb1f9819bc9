"""The rules on running containers of the CIS Docker Benchmark (section 5, numbers as in 1.6), asked of what the engine says of a box."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.backends.boxes import AGENT_CAPABILITIES

ENGINE_DEFAULT_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
    }
    | {"SETUID", "SYS_CHROOT"}
)
SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sys", "/usr", "/var", "/var/run")
SOCKETS = ("docker.sock", "containerd.sock", "podman.sock", "crio.sock")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`ours` says what a box has instead of, or beside, what the rule asks for."""

    number: str
    title: str
    ours: str
    holds: Callable[[Any], bool]


def violated(inspected: Any) -> set[str]:
    """Numbers of the rules that a container breaks. `inspected`: the engine's whole answer on a running one."""
    return {rule.number for rule in RULES if not rule.holds(inspected)}


def _host(inspected: Any) -> Any:
    return inspected["HostConfig"]


def _apparmor(inspected: Any) -> bool:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    return bool(inspected["AppArmorProfile"]) or not (enabled.exists() and enabled.read_text().startswith("Y"))


def _selinux(inspected: Any) -> bool:
    return bool(inspected["ProcessLabel"]) or not Path("/sys/fs/selinux/enforce").exists()


def _capabilities(inspected: Any) -> bool:
    host = _host(inspected)
    return (
        host["CapDrop"] == ["ALL"]
        and set(host["CapAdd"] or ()) <= set(AGENT_CAPABILITIES) < ENGINE_DEFAULT_CAPABILITIES
    )


def _mounts(inspected: Any) -> bool:
    return not any(
        mount["Source"].rstrip("/") in {each.rstrip("/") for each in SENSITIVE} for mount in inspected["Mounts"]
    )


def _no_ssh(inspected: Any) -> bool:
    return not any("sshd" in line for line in inspected["Processes"])


def _no_ports(inspected: Any) -> bool:
    host = _host(inspected)
    return (
        not host["PortBindings"]
        and not host["PublishAllPorts"]
        and not any((inspected["NetworkSettings"]["Ports"] or {}).values())
    )


def _memory(inspected: Any) -> bool:
    host = _host(inspected)
    return bool(0 < host["Memory"] == host["MemorySwap"] and not host["OomKillDisable"])


def _processor(inspected: Any) -> bool:
    host = _host(inspected)
    return any(host[name] > 0 for name in ("CpuShares", "CpuQuota", "NanoCpus"))


def _limits(inspected: Any) -> bool:
    return {limit["Name"] for limit in _host(inspected)["Ulimits"] or ()} >= {"core", "fsize", "nofile", "nproc"}


def _private(inspected: Any) -> bool:
    return all(mount.get("Propagation") in ("", "rprivate", "private") for mount in inspected["Mounts"])


def _filter(inspected: Any) -> bool:
    options = _host(inspected)["SecurityOpt"] or ()
    return any(each.startswith("seccomp={") for each in options)


def _options(inspected: Any) -> set[str]:
    return set(_host(inspected)["SecurityOpt"] or ())


def _by_digest(inspected: Any) -> bool:
    return (
        str(inspected["Config"]["Image"]).startswith("sha256:") and inspected["Config"]["Image"] == inspected["Image"]
    )


def _no_engine(inspected: Any) -> bool:
    return not any(
        name in mount["Source"] or name in mount["Destination"] for mount in inspected["Mounts"] for name in SOCKETS
    )


def _rule(number: str, title: str, ours: str, holds: Callable[[Any], bool]) -> Rule:
    return Rule(number=number, title=title, ours=ours, holds=holds)


RULES: Sequence[Rule] = (
    _rule(
        "5.2",
        "AppArmor profile where the kernel has AppArmor",
        "the engine's own profile, where there is one",
        _apparmor,
    ),
    _rule("5.3", "SELinux options where SELinux is on", "the engine's own label, where SELinux is on", _selinux),
    _rule(
        "5.4",
        "capabilities restricted",
        "all dropped; the agent has KILL, SETGID, SETUID, commands none",
        _capabilities,
    ),
    _rule("5.5", "not privileged", "never", lambda found: _host(found)["Privileged"] is False),
    _rule("5.6", "no sensitive host folder mounted", "the box's own folders and the agent's binary only", _mounts),
    _rule("5.7", "no sshd", "one agent, on a unix socket", _no_ssh),
    _rule("5.8", "no privileged port mapped", "no port at all", _no_ports),
    _rule("5.9", "only needed ports open", "no port at all", _no_ports),
    _rule("5.10", "not the host's network", "none", lambda found: _host(found)["NetworkMode"] == "none"),
    _rule("5.11", "memory limited", "the task's, swap included", _memory),
    _rule("5.12", "CPU priority set", "a quota instead of shares: the task's processors", _processor),
    _rule("5.13", "root file system read only", "always", lambda found: _host(found)["ReadonlyRootfs"] is True),
    _rule("5.14", "incoming traffic bound to one interface", "no port at all", _no_ports),
    _rule(
        "5.15",
        "restarts bounded",
        "none: a box that ended is lost",
        lambda found: _host(found)["RestartPolicy"]["Name"] == "no",
    ),
    _rule("5.16", "not the host's processes", "its own", lambda found: _host(found)["PidMode"] == ""),
    _rule("5.17", "not the host's IPC", "its own", lambda found: _host(found)["IpcMode"] == "private"),
    _rule(
        "5.18",
        "no host device",
        "the engine's harmless ones",
        lambda found: not _host(found)["Devices"] and not _host(found)["DeviceRequests"],
    ),
    _rule("5.19", "default ulimits overridden where needed", "files, file size, core files, processes", _limits),
    _rule("5.20", "no shared mount propagation", "private", _private),
    _rule("5.21", "not the host's UTS", "its own", lambda found: _host(found)["UTSMode"] == ""),
    _rule("5.22", "seccomp not disabled", "a stricter profile than the engine's", _filter),
    _rule("5.23", "no privileged docker exec", "no docker exec at all", lambda found: not found["ExecIDs"]),
    _rule("5.24", "no docker exec as root", "no docker exec at all", lambda found: not found["ExecIDs"]),
    _rule(
        "5.25",
        "cgroup as the engine makes it",
        "its own",
        lambda found: _host(found)["CgroupParent"] == "" and _host(found)["CgroupnsMode"] == "private",
    ),
    _rule("5.26", "no new privileges", "always", lambda found: "no-new-privileges" in _options(found)),
    _rule(
        "5.27",
        "health checked",
        "by the agent's protocol: the image's own check would run its code",
        lambda found: found["Config"]["Healthcheck"]["Test"] == ["NONE"],
    ),
    _rule("5.28", "image version known", "by its id; nothing is pulled", _by_digest),
    _rule(
        "5.29",
        "pids limited",
        "the task's processes and the agent's threads",
        lambda found: 0 < (_host(found)["PidsLimit"] or 0) < 10_000,
    ),
    _rule(
        "5.30", "not the default bridge", "none", lambda found: _host(found)["NetworkMode"] not in ("default", "bridge")
    ),
    _rule(
        "5.31",
        "user namespace not forced to the host's",
        "the engine's",
        lambda found: _host(found)["UsernsMode"] != "host",
    ),
    _rule("5.32", "no engine socket inside", "none", _no_engine),
    _rule(
        "2.13/5.x",
        "no log that fills the disk",
        "none: output goes through the agent",
        lambda found: _host(found)["LogConfig"]["Type"] == "none",
    ),
    _rule(
        "5.x",
        "no terminal, no standard input",
        "neither",
        lambda found: not found["Config"]["Tty"] and not found["Config"]["OpenStdin"],
    ),
)


def with_processes(inspected: Mapping[str, Any], processes: Sequence[str]) -> Any:
    """The engine's answer and the command lines of the container's processes."""
    return {**inspected, "Processes": list(processes)}
