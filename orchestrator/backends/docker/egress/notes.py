"""A proxy's folder on this machine: its configuration, its notes of what boxes tried, the numbers given out. Blocking: run in a thread.

<key>/conf/{squid.conf,dnsmasq.conf,wired}   read by the proxy
<key>/notes/<address>.{requests,queries}     written by the proxy
<key>/cut/<number>                           the box of that number was cut off
<key>/{list.json,next}
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.backends.docker.egress import plans
from orchestrator.backends.docker.egress.plans import ProxyPlan
from orchestrator.egress.attempts import MAX_BYTES
from orchestrator.errors import StartFailed
from orchestrator.models import Network

KINDS = ("requests", "queries")
LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp."""


def prepare(folder: Path, plan: ProxyPlan) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # First: a folder without its list is found by no sweep.
    listed = {
        "allow": plan.network.allow,
        "ports": plan.network.ports,
        "use": plan.owner.get("tiltyard.egress.use", ""),
    }
    (folder / "list.json").write_text(json.dumps(listed), encoding="ascii")
    # The proxy may write into the files that are made for it, and can make none: what it is tricked into cannot misname them.
    for part in ("conf", "notes", "cut"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "wired").unlink(missing_ok=True)
    (folder / "conf" / "squid.conf").write_text(plans.squid_conf(plan), encoding="ascii")
    (folder / "conf" / "dnsmasq.conf").write_text(plans.dnsmasq_conf(plan.network), encoding="ascii")


def network_of(folder: Path) -> Network:
    listed = json.loads((folder / "list.json").read_text(encoding="ascii"))
    return Network(allow=tuple(listed["allow"]), ports=tuple(listed["ports"]))


def keys(folder: Path, use: str) -> Sequence[str]:
    """The proxies of this use that have a folder."""
    found = []
    for path in folder.glob("*/list.json"):
        try:
            if json.loads(path.read_text(encoding="ascii"))["use"] == use:
                found.append(path.parent.name)
        except (OSError, ValueError, KeyError):
            continue
    return found


def mark_wired(folder: Path) -> None:
    (folder / "conf" / "wired").touch()


def is_wired(folder: Path) -> bool:
    return (folder / "conf" / "wired").exists()


def mark_cut(folder: Path, number: int) -> None:
    (folder / "cut" / str(number)).touch()


def is_cut(folder: Path, number: int) -> bool:
    return (folder / "cut" / str(number)).exists()


def next_number(folder: Path, *, last: int = plans.LAST, chown: bool = True) -> int:
    """In turn, so that what is still under way for a box that is gone is not taken for another's. Raises StartFailed when all are in use."""
    counter = folder / "next"
    try:
        start = int(counter.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        start = plans.FIRST
    span = last - plans.FIRST + 1
    for step in range(span):
        number = plans.FIRST + (start - plans.FIRST + step) % span
        if not any(path.exists() for path in _files(folder, number)):
            counter.write_text(str(number + 1), encoding="ascii")
            for kind in KINDS:
                _claim(folder / "notes" / f"{plans.box_address(number)}.{kind}", chown)
            return number
    raise StartFailed("all addresses for boxes of this allow-list are in use")


def _claim(path: Path, chown: bool) -> None:
    path.touch(mode=0o644)
    if chown:
        os.chown(path, plans.UID, plans.UID)


def forget(folder: Path, number: int) -> None:
    for path in _files(folder, number):
        path.unlink(missing_ok=True)


def read(folder: Path, number: int) -> Sequence[str]:
    """The notes of one box: hostile text, capped."""
    texts = []
    for kind in KINDS:
        path = folder / "notes" / f"{plans.box_address(number)}.{kind}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with os.fdopen(fd, "rb") as stream:
            texts.append(stream.read(MAX_BYTES).decode("ascii", "replace"))
    return texts


def _files(folder: Path, number: int) -> Sequence[Path]:
    address = plans.box_address(number)
    return [*(folder / "notes" / f"{address}.{kind}" for kind in KINDS), folder / "cut" / str(number)]


def listens(pid: int) -> bool:
    """Whether the namespace of process `pid` has a listener on the proxy's port and one on the resolver's."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    ports = {int(fields[1].rpartition(":")[2], 16) for fields in map(str.split, lines) if fields[3] == LISTENS}
    return {plans.PORT, plans.DNS_PORT} <= ports
