"""Boxes with one setting weakened, and what must turn red for each: looks from outside, checks of the suite, rules of the benchmark."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.integrity.live import Weakening


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """`outside`: beginnings of lines that `differences` must tell. `checks`: ids of the conformance suite that must fail. `rules`: of docker_bench.

    `controls` are those that this mutant shows to be watched.
    """

    name: str
    weaken: Weakening
    controls: tuple[str, ...]
    outside: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


def _set(**fields: Any) -> Weakening:
    return lambda body: body["HostConfig"].update(copy.deepcopy(fields))


def _option(old: str, *new: str) -> Weakening:
    """Security options that begin with `old` are replaced."""

    def weaken(body: Any) -> None:
        host = body["HostConfig"]
        host["SecurityOpt"] = [*(each for each in host["SecurityOpt"] if not each.startswith(old)), *new]

    return weaken


def _mount(source: str, target: str, **options: Any) -> Weakening:
    entry = {"Type": "bind", "Source": source, "Target": target, "ReadOnly": True, **options}
    return lambda body: body["HostConfig"]["Mounts"].append(dict(entry))


def _without_ulimit(name: str, **also: Any) -> Weakening:
    def weaken(body: Any) -> None:
        host = body["HostConfig"]
        host["Ulimits"] = [each for each in host["Ulimits"] if each["Name"] != name]
        host.update(also)

    return weaken


def _hostname_of_the_machine(body: Any) -> None:
    body["HostConfig"]["UTSMode"] = "host"
    del body["Hostname"]


def _leaky(body: Any) -> None:
    body["Env"] = ["AWS_SECRET_ACCESS_KEY=canary"]


def _terminal(body: Any) -> None:
    body["Tty"] = body["OpenStdin"] = True


def _by_name(body: Any) -> None:
    body["Image"] = "tiltyard/python:3.11"


def _networked(mode: str) -> Weakening:
    def weaken(body: Any) -> None:
        body["HostConfig"].update(NetworkMode=mode)
        if mode == "host":
            body.pop("Hostname")

    return weaken


NETWORK = f"tiltyard-integrity-{os.getpid()}"
"""Made for the tests that need it, with no way out."""
NAMESPACES = "isolation/namespaces-are-the-boxs-own"
SYSTEM_CALLS = "isolation/dangerous-system-calls-are-refused"

MUTANTS: Sequence[Mutant] = (
    Mutant(
        name="one more capability",
        controls=("C1",),
        weaken=_set(CapAdd=["KILL", "SETGID", "SETUID", "SYS_ADMIN"]),
        outside=("rights bounding",),
        rules=("5.4",),
    ),
    Mutant(
        name="the engine's capabilities",
        controls=("C1",),
        weaken=_set(CapDrop=[], CapAdd=[]),
        rules=("5.4",),
    ),
    Mutant(name="no no-new-privileges", controls=("C2",), weaken=_option("no-new-privileges"), rules=("5.26",)),
    Mutant(
        name="no seccomp",
        controls=("C3", "C4"),
        weaken=_option("seccomp=", "seccomp=unconfined"),
        outside=("rights seccomp",),
        checks=(SYSTEM_CALLS, "isolation/no-new-privileges-and-a-filter", "isolation/namespaces-cannot-be-made"),
        rules=("5.22",),
    ),
    Mutant(
        name="the engine's seccomp",
        controls=("C3", "C4"),
        weaken=_option("seccomp="),
        checks=(SYSTEM_CALLS,),
        rules=("5.22",),
    ),
    Mutant(
        name="writable root",
        controls=("C6",),
        weaken=_set(ReadonlyRootfs=False),
        outside=("mounts /:",),
        checks=("isolation/the-rest-is-read-only", "isolation/writable-places-hold-no-privilege"),
        rules=("5.13",),
    ),
    Mutant(
        name="unmasked /proc",
        controls=("C7",),
        weaken=_set(MaskedPaths=[], ReadonlyPaths=[]),
        outside=("mounts /proc/kallsyms", "mounts /proc/sys"),
        checks=("isolation/telling-kernel-files-are-masked",),
    ),
    Mutant(
        name="the engine's socket",
        controls=("C9",),
        weaken=_mount("/var/run/docker.sock", "/run/docker.sock"),
        outside=("mounts /run/docker.sock",),
        checks=("isolation/no-socket-leads-out",),
        rules=("5.32",),
    ),
    Mutant(
        name="the machine's root",
        controls=("C9", "C23"),
        weaken=_mount("/", "/host"),
        outside=("mounts /host", "root"),
        checks=("isolation/files-of-the-machine-are-not-seen",),
        rules=("5.6",),
    ),
    Mutant(
        name="a device",
        controls=("C9",),
        weaken=_set(
            Devices=[
                {"PathOnHost": "/dev/loop-control", "PathInContainer": "/dev/loop-control", "CgroupPermissions": "rwm"}
            ]
        ),
        checks=("isolation/only-harmless-devices",),
        rules=("5.18",),
    ),
    Mutant(
        name="the machine's processes",
        controls=("C10",),
        weaken=_set(PidMode="host"),
        outside=("rights namespaces pid:",),
        checks=(
            "isolation/processes-of-the-machine-are-not-seen",
            "isolation/boxes-do-not-share-memory-or-processes",
            NAMESPACES,
        ),
        rules=("5.16",),
    ),
    Mutant(
        name="the machine's IPC",
        controls=("C10",),
        weaken=_set(IpcMode="host"),
        outside=("rights namespaces ipc:",),
        checks=(NAMESPACES,),
        rules=("5.17",),
    ),
    Mutant(
        name="the machine's name",
        controls=("C10",),
        weaken=_hostname_of_the_machine,
        outside=("rights namespaces uts:",),
        checks=("isolation/hostname-tells-nothing", NAMESPACES),
        rules=("5.21",),
    ),
    Mutant(
        name="the machine's cgroups",
        controls=("C10",),
        weaken=_set(CgroupnsMode="host"),
        outside=("rights namespaces cgroup:",),
        rules=("5.25",),
    ),
    Mutant(
        name="the machine's network",
        controls=("C10", "C20"),
        weaken=_networked("host"),
        outside=("rights namespaces net:",),
        checks=("isolation/no-network-interface", "isolation/the-machine-is-out-of-reach", NAMESPACES),
        rules=("5.10",),
    ),
    Mutant(
        name="a network of the engine's",
        controls=("C20",),
        weaken=_networked(NETWORK),
        checks=("isolation/no-network-interface",),
        rules=("5.10",),
    ),
    Mutant(
        name="no memory limit",
        controls=("C11",),
        weaken=_set(Memory=0, MemorySwap=0),
        outside=("caps memory_bytes", "caps memory_and_swap_bytes"),
        checks=("limits/memory-above-the-limit-kills-the-command",),
        rules=("5.11",),
    ),
    Mutant(
        name="swap beyond the limit",
        controls=("C11",),
        weaken=_set(MemorySwap=-1),
        outside=("caps memory_and_swap_bytes",),
        rules=("5.11",),
    ),
    Mutant(
        name="no pids limit",
        controls=("C12",),
        weaken=_set(PidsLimit=0),
        outside=("caps pids",),
        rules=("5.29",),
    ),
    Mutant(
        name="neither pids limit nor process limit",
        controls=("C12", "C19"),
        weaken=_without_ulimit("nproc", PidsLimit=0),
        outside=("caps pids", "limits Max processes"),
        checks=("limits/processes-above-the-limit-do-not-start",),
        rules=("5.19", "5.29"),
    ),
    Mutant(
        name="no processor limit",
        controls=("C13",),
        weaken=_set(CpuPeriod=0, CpuQuota=0),
        outside=("caps cpu_percent",),
        checks=("limits/processor-time-is-limited",),
        rules=("5.12",),
    ),
    Mutant(
        name="files without limit",
        controls=("C19",),
        weaken=_without_ulimit("nofile"),
        outside=("limits Max open files",),
        checks=("limits/descriptors-and-core-files-are-limited",),
        rules=("5.19",),
    ),
    Mutant(
        name="file size without limit",
        controls=("C19",),
        weaken=_without_ulimit("fsize"),
        outside=("limits Max file size",),
        rules=("5.19",),
    ),
    Mutant(
        name="a log on the machine's disk",
        controls=("C16",),
        weaken=_set(LogConfig={"Type": "json-file"}),
        rules=("2.13/5.x",),
    ),
    Mutant(
        name="a secret in the environment",
        controls=("C23",),
        weaken=_leaky,
        outside=("environment AWS_SECRET_ACCESS_KEY",),
    ),
    Mutant(
        name="a terminal",
        controls=("C30",),
        weaken=_terminal,
        outside=("descriptors", "mounts /dev/console"),
        rules=("5.x",),
    ),
    Mutant(name="restarts", controls=("C26",), weaken=_set(RestartPolicy={"Name": "always"}), rules=("5.15",)),
    Mutant(name="the image by its name", controls=("C25",), weaken=_by_name, rules=("5.28",)),
)

ON_GVISOR = ("writable root", "neither pids limit nor process limit")
"""Weakened under gVisor as well: where the suite has no gap there, and the machine, not the sentry, would give way."""
