"""What the probe's findings must be: a pure function from findings to the ids of violated controls."""

import os
from collections.abc import Callable, Mapping
from typing import Any

Findings = Mapping[str, Any]

REFUSED = frozenset({"EPERM", "ENOSYS"})
WRITABLE = frozenset({"/workspace", "/tmp", "/home/agent", "/dev/shm", "/dev/mqueue"})
DEVICES = frozenset(
    "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero core console".split()  # noqa: SIM905
)
UNREACHABLE = frozenset({"ENETUNREACH", "EADDRNOTAVAIL", "EPERM", "EACCES"})
BOUNDED_WRITABLE_FLAGS = frozenset({"nosuid", "nodev"})
HOST_NAMESPACES = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts")}


def c1(found: Findings) -> bool:
    held = [found["status"][name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
    return all(int(value, 16) == 0 for value in held) and found["chown"] == "EPERM" and found["mknod"] == "EPERM"


def c1_bounding(found: Findings) -> bool:
    """Nothing but what the agent needs can be had at all."""
    return int(found["status"]["CapBnd"], 16) & ~0xE0 == 0


def c2(found: Findings) -> bool:
    return bool(found["status"]["NoNewPrivs"] == "1")


def c3(found: Findings) -> bool:
    families = found["families"]
    return (
        found["status"]["Seccomp"] == "2"
        and all(answer in REFUSED for answer in found["calls"].values())
        and found["calls"]["clone3"] == "ENOSYS"
        and found["int80"] != "ok"
        and found["x32"] != "ok"
        and all(families[name] == "EPERM" for name in ("alg", "vsock", "packet", "sctp", "mptcp"))
        and families["netlink_route"] == "ENOSYS"
        and families["netlink_audit"] == "EPROTONOSUPPORT"
        and all(families[name] == "ok" for name in ("unix", "ip", "ip6"))
    )


def c6(found: Findings) -> bool:
    written = {folder for folder, answer in found["writes"].items() if answer == "ok"}
    flags = found["mounts"]
    bounded = all(set(flags[place]) >= BOUNDED_WRITABLE_FLAGS for place in WRITABLE if place in flags)
    return written <= WRITABLE and "ro" in flags["/"] and bounded


def c7(found: Findings) -> bool:
    return not any(found["masked"].values()) and all(answer != "ok" for answer in found["switches"].values())


def c9(found: Findings) -> bool:
    return set(found["devices"]) <= DEVICES and set(found["unix_sockets"]) <= {"/run/tiltyard/agent.sock"}


def c10(found: Findings) -> bool:
    return all(found["namespaces"][name] != inode for name, inode in HOST_NAMESPACES.items())


def c19(found: Findings) -> bool:
    limits = {name: tuple(value) for name, value in found["limits"].items()}
    return limits["core"] == (0, 0) and all(value[1] > 0 for name, value in limits.items() if name != "core")


def c20(found: Findings) -> bool:
    refused = all(set(answers) <= UNREACHABLE for answers in found["peers"].values())
    return (
        refused and found["interfaces"] == ["lo"] and found["names"] == "fails" and found["families"]["raw"] == "EPERM"
    )


CONTROLS: Mapping[str, Callable[[Findings], bool]] = {
    "C1": c1,
    "C1 bounding": c1_bounding,
    "C2": c2,
    "C3": c3,
    "C6": c6,
    "C7": c7,
    "C9": c9,
    "C10": c10,
    "C19": c19,
    "C20": c20,
}


def violated(found: Findings) -> set[str]:
    return {control for control, holds in CONTROLS.items() if not holds(found)}
