"""Checks that a backend of ours is known not to pass, each with its reason. A gap that passes fails the run, until it is taken off.

Gaps belong to a subject: a backend with its runtime and image (`docker`, `docker-runsc`, `docker-busybox`, `fake`).
"""

from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_IMAGE = "tiltyard/python:3.11"
HOST_IMAGE = "host"
"""The only one of the local backend."""

NO_KERNEL = "the fake backend runs no programs: there is no kernel, process, network or /proc to look at"
NO_USERS = "the fake backend has no users: a principal is a name, and nothing is kept from it"
NO_IMAGES = "the fake backend has no images: any name will do"

NO_LANGUAGE = (
    "the fake box's shell knows no functions, here-documents and options: it is there to drive hosts and tools"
)
NO_TERMINALS = "the fake backend has no terminals"

_NEEDS_A_KERNEL = (
    "isolation/loopback-works",
    "isolation/no-network-interface",
    "isolation/metadata-service-is-out-of-reach",
    "isolation/the-world-is-out-of-reach",
    "isolation/the-machine-is-out-of-reach",
    "isolation/own-processes-are-seen",
    "isolation/processes-of-the-machine-are-not-seen",
    "isolation/own-socket-can-be-connected-to",
    "isolation/no-socket-leads-out",
    "isolation/posture-can-be-read",
    "isolation/commands-have-no-capabilities",
    "isolation/no-new-privileges-and-a-filter",
    "isolation/ordinary-system-calls-work",
    "isolation/dangerous-system-calls-are-refused",
    "isolation/namespaces-cannot-be-made",
    "isolation/system-calls-of-other-tables-are-refused",
    "isolation/the-clock-cannot-be-set",
    "isolation/no-terminal-takes-typed-letters",
    "isolation/namespaces-are-the-boxs-own",
    "isolation/own-folders-are-writable",
    "isolation/writable-places-hold-no-privilege",
    "isolation/the-rest-is-read-only",
    "isolation/harmless-kernel-files-are-readable",
    "isolation/telling-kernel-files-are-masked",
    "isolation/only-harmless-devices",
    "isolation/the-agents-memory-is-out-of-reach",
    "isolation/the-agents-files-are-out-of-reach",
    "isolation/boxes-do-not-share-memory-or-processes",
    "isolation/hostname-tells-nothing",
    "races/a-swapped-folder-can-be-used",
    "races/a-folder-swapped-for-a-link-leads-nowhere",
    "races/what-the-host-takes-is-never-led-outside",
    "races/a-file-swapped-for-a-link-leads-nowhere",
    "races/a-file-swapped-for-a-pipe-hangs-nobody",
    "races/a-hollow-file-costs-nothing",
    "races/a-growing-file-is-taken-as-it-was",
    "races/a-socket-is-no-file",
    "hostile/a-flood-of-a-few-megabytes-is-counted",
    "hostile/a-flood-of-gigabytes-fills-nobody",
    "hostile/a-daemon-of-the-probe-shows",
    "hostile/time-out-kills-what-is-deaf-to-every-signal",
    "hostile/time-out-kills-what-is-never-the-same-process",
    "hostile/freeze-ends-what-will-not-die",
    "hostile/destroy-ends-what-will-not-die",
    "hostile/orphans-are-buried",
    "hostile/a-storm-of-zombies-is-survived",
    "hostile/many-small-hogs-harm-no-neighbour",
    "hostile/no-secret-of-the-host-is-in-any-environment",
    "hostile/limits-can-be-lowered",
    "hostile/limits-cannot-be-raised",
    "hostile/no-core-file-is-written",
    "limits/processes-below-the-limit-start",
    "limits/processes-above-the-limit-do-not-start",
    "limits/fork-bomb-is-survived",
    "limits/memory-below-the-limit-can-be-used",
    "limits/memory-above-the-limit-kills-the-command",
    "limits/background-flood-does-not-fill-the-agent",
    "limits/processor-time-is-limited",
    "limits/descriptors-and-core-files-are-limited",
)
_FAKE: Mapping[str, str] = {
    **dict.fromkeys(_NEEDS_A_KERNEL, NO_KERNEL),
    "life/trusted-files-and-processes-are-out-of-reach": NO_USERS,
    "life/missing-image-is-refused": NO_IMAGES,
    "session/functions-are-kept": NO_LANGUAGE,
    "session/here-documents-work": NO_LANGUAGE,
    "session/errexit-ends-it": NO_LANGUAGE,
    "session/a-terminal-on-request": NO_TERMINALS,
    "session/a-session-does-not-change-its-terminal": NO_TERMINALS,
}
_DOCKER: Mapping[str, str] = {}

GVISOR_SILENT = "gVisor tells neither ambient capabilities nor no_new_privs in /proc; both hold: prctl and capget show it from inside"
GVISOR_FILTER = "gVisor applies no filter of ours in the box: such calls reach its own kernel, not the machine's, before which its own filter stands"
GVISOR_DEVICES = "gVisor has devices fuse and net/tun of its own, and mounts its /dev/shm without nodev; none can be used without capabilities"
GVISOR_NAMESPACES = "gVisor's kernels number their namespaces alike; that boxes share none is seen by what they do"
GVISOR_MEMORY = "gVisor keeps a box's memory in one process: above the limit the whole box ends, as the agent's doing"
GVISOR_TIME = "gVisor counts a throttled thread's time as used; by the machine's count the limit holds"
_DOCKER_RUNSC: Mapping[str, str] = {
    "isolation/posture-can-be-read": GVISOR_SILENT,
    "isolation/commands-have-no-capabilities": GVISOR_SILENT,
    "isolation/no-new-privileges-and-a-filter": GVISOR_FILTER,
    "isolation/dangerous-system-calls-are-refused": GVISOR_FILTER,
    "isolation/namespaces-cannot-be-made": GVISOR_FILTER,
    "isolation/writable-places-hold-no-privilege": GVISOR_DEVICES,
    "isolation/only-harmless-devices": GVISOR_DEVICES,
    "isolation/namespaces-are-the-boxs-own": GVISOR_NAMESPACES,
    "limits/memory-above-the-limit-kills-the-command": GVISOR_MEMORY,
    "limits/processor-time-is-limited": GVISOR_TIME,
}
"""`tests/backends/docker/test_gvisor.py` looks at what stands behind each."""

LOCAL_SHARED = "without root agent and commands share one uid, so that commands reach the agent's files, socket and signals; no signal ends it"
LOCAL_PRINCIPALS = (
    "without root a box has one uid, so that no trusted command is out of the others' reach: grading boxes are refused"
)
LOCAL_USERS = "without root all boxes run as whoever serves; their namespaces keep them apart"
LOCAL_WATCHED = "without root disk is watched and not capped: a box that takes more is ended, as its own doing"
LOCAL_MEMORY = "without root there is no cgroup: each process is held to the memory limit by itself, and hears ENOMEM"
LOCAL_PROCESSES = "without root one limit of processes holds for commands and agent together: 64 more than the task's"
LOCAL_TIME = "without root there is no cgroup, and nothing else limits processor time (a machine busy with other work may hide it)"
LOCAL_TAG = "without a second uid a command's tree is marked in its environment"
_LOCAL_WITHOUT_ROOT: Mapping[str, str] = {
    "exec/environment-holds-nothing-else": LOCAL_TAG,
    "archives/an-archive-larger-than-the-disk-is-refused": LOCAL_WATCHED,
    "isolation/the-rest-is-read-only": LOCAL_SHARED,
    "isolation/own-socket-can-be-connected-to": LOCAL_SHARED,
    "isolation/no-socket-leads-out": LOCAL_SHARED,
    "isolation/the-agents-files-are-out-of-reach": LOCAL_SHARED,
    "isolation/the-agent-cannot-be-signalled": LOCAL_SHARED,
    "isolation/boxes-have-users-of-their-own": LOCAL_USERS,
    "limits/processes-above-the-limit-do-not-start": LOCAL_PROCESSES,
    "limits/memory-above-the-limit-kills-the-command": LOCAL_MEMORY,
    "limits/processor-time-is-limited": LOCAL_TIME,
    "limits/disk-above-the-limit-is-refused": LOCAL_WATCHED,
    "limits/tmp-and-home-count-too": LOCAL_WATCHED,
    "limits/inodes-above-the-limit-are-refused": LOCAL_WATCHED,
    "hostile/a-full-box-can-still-be-graded": LOCAL_WATCHED,
    "life/grader-box-runs-the-trusted-principal": LOCAL_PRINCIPALS,
    "life/trusted-files-and-processes-are-out-of-reach": LOCAL_PRINCIPALS,
    "life/rollout-box-has-no-trusted-principal": LOCAL_PRINCIPALS,
}
"""`local` itself, with root, has none."""

POD_NETWORK = "a pod has an interface, and to the probe a policy's refusal is an answer; tests/kubernetes/test_escapes.py tries each way out"
POD_DISK = "a pod's disk is watched by its node, not capped: a box that takes more is evicted, as its own doing; inodes are not counted"
POD_FILTER = "the runtime's default filter stands in place of ours; TILTYARD_KUBE_SECCOMP_PROFILE names ours where an operator installed it"
POD_MOUNTS = "an emptyDir is mounted without nosuid and nodev; no command can make a device, and no_new_privs makes set-uid bits void"
POD_MASKS = "the runtime masks what it masks by default: names of kernel symbols can be read, their addresses cannot"
_KUBERNETES: Mapping[str, str] = {
    "archives/an-archive-larger-than-the-disk-is-refused": POD_DISK,
    "isolation/dangerous-system-calls-are-refused": POD_FILTER,
    "isolation/system-calls-of-other-tables-are-refused": POD_FILTER,
    "isolation/writable-places-hold-no-privilege": POD_MOUNTS,
    "isolation/no-network-interface": POD_NETWORK,
    "isolation/metadata-service-is-out-of-reach": POD_NETWORK,
    "isolation/the-world-is-out-of-reach": POD_NETWORK,
    "isolation/telling-kernel-files-are-masked": POD_MASKS,
    "limits/disk-above-the-limit-is-refused": POD_DISK,
    "limits/tmp-and-home-count-too": POD_DISK,
    "limits/inodes-above-the-limit-are-refused": POD_DISK,
    "hostile/a-full-box-can-still-be-graded": POD_DISK,
}

POD_SHARED = "in pods of level restricted agent and commands share one uid: commands reach the agent's files, and no signal ends it"
POD_PRINCIPALS = "pods of level restricted have one uid, so that no trusted command is out of the others' reach: grading boxes are refused"
POD_PROCESSES = (
    "in pods of level restricted one limit of processes holds for commands and agent together: 64 more than the task's"
)
_KUBERNETES_RESTRICTED: Mapping[str, str] = {
    **_KUBERNETES,
    "exec/environment-holds-nothing-else": LOCAL_TAG,
    "isolation/the-rest-is-read-only": POD_SHARED,
    "isolation/the-agents-files-are-out-of-reach": POD_SHARED,
    "isolation/the-agent-cannot-be-signalled": POD_SHARED,
    "limits/processes-above-the-limit-do-not-start": POD_PROCESSES,
    "life/grader-box-runs-the-trusted-principal": POD_PRINCIPALS,
    "life/trusted-files-and-processes-are-out-of-reach": POD_PRINCIPALS,
    "life/rollout-box-has-no-trusted-principal": POD_PRINCIPALS,
}

_OF_THE_MACHINES_KERNEL = (
    "isolation/system-calls-of-other-tables-are-refused",
    "isolation/telling-kernel-files-are-masked",
)
_KUBERNETES_GVISOR: Mapping[str, str] = {
    **{check: why for check, why in _KUBERNETES.items() if check not in _OF_THE_MACHINES_KERNEL},
    **{check: why for check, why in _DOCKER_RUNSC.items() if check != "limits/processor-time-is-limited"},
}

GAPS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "fake": _FAKE,
        "docker": _DOCKER,
        "docker-runsc": _DOCKER_RUNSC,
        "docker-runsc-busybox": _DOCKER_RUNSC,
        "local-without-root": _LOCAL_WITHOUT_ROOT,
        "kubernetes": _KUBERNETES,
        "kubernetes-gvisor": _KUBERNETES_GVISOR,
        "kubernetes-restricted": _KUBERNETES_RESTRICTED,
    }
)
"""By subject; one that is not named has none."""


def subject(backend: str, *, runtime: str = "", image: str = DEFAULT_IMAGE) -> str:
    """What the suite is run over, as one word: the backend, its runtime and the image where they are not the usual ones.

    `docker`, `docker-runsc`, `docker-busybox`, `docker-runsc-busybox`, `fake`, `local`, `local-without-root`.
    """
    name = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    parts = (backend, "" if runtime == "runc" else runtime, "" if image in (DEFAULT_IMAGE, HOST_IMAGE) else name)
    return "-".join(filter(None, parts))
