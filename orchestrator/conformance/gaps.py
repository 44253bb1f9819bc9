"""Checks that a backend of ours is known not to pass, each with its reason. A gap that passes fails the run, until it is taken off.

Gaps belong to a subject: a backend with its runtime and image (`docker`, `docker-runsc`, `docker-busybox`, `fake`).
"""

from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_IMAGE = "tiltyard/python:3.11"

NO_KERNEL = "the fake backend runs no programs: there is no kernel, process, network or /proc to look at"
NO_USERS = "the fake backend has no users: a principal is a name, and nothing is kept from it"
NO_IMAGES = "the fake backend has no images: any name will do"

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
}
_DOCKER: Mapping[str, str] = {}

GAPS: Mapping[str, Mapping[str, str]] = MappingProxyType({"fake": _FAKE, "docker": _DOCKER})
"""By subject; one that is not named has none."""


def subject(backend: str, *, runtime: str = "", image: str = DEFAULT_IMAGE) -> str:
    """What the suite is run over, as one word: the backend, its runtime and the image where they are not the usual ones.

    `docker`, `docker-runsc`, `docker-busybox`, `docker-runsc-busybox`, `fake`, `local`.
    """
    name = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    parts = (backend, "" if runtime == "runc" else runtime, "" if image == DEFAULT_IMAGE else name)
    return "-".join(filter(None, parts))
