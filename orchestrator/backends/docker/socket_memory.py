"""The limit of what lies in a box's TCP and UDP sockets, where control groups are of version 1.

Version 1 does not count it as memory, and since 1.0 runc passes over the field by which an engine is asked for it. Version 2 counts it.
"""

import os
from pathlib import Path

from orchestrator.repos.mounts import unescape

LIMIT = "memory.kmem.tcp.limit_in_bytes"


def group_of(cgroups: str, mountinfo: str) -> Path | None:
    """The memory group of version 1 that /proc/PID/cgroup names, below its mount; None where that process has none."""
    below = next(
        (line.split(":", 2)[2] for line in cgroups.splitlines() if "memory" in line.split(":")[1].split(",")), ""
    )
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" ", 2), "", "")[:3]
        if below and kind == "cgroup" and "memory" in options.split(","):
            return Path(unescape(before.split(" ")[4])) / below.lstrip("/")
    return None


def limit(pid: int, limit_bytes: int) -> None:
    """Hold the box of process `pid` to it; sockets made before are not counted. Without root nothing is done. Blocks. Raises OSError."""
    if os.geteuid() != 0:
        return
    group = group_of(
        Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="surrogateescape"),
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"),
    )
    if group is not None:
        (group / LIMIT).write_text(str(limit_bytes), encoding="ascii")
