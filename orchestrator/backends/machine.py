"""What backends ask of the machine itself."""

from pathlib import Path

from orchestrator.errors import Misconfigured


def three_quarters_of_memory_mib() -> int:
    """Of the machine, from /proc/meminfo: the rest is for the engine, the server and the page cache."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 3 // 4 // 1024
    raise Misconfigured("/proc/meminfo names no MemTotal: set memory_limit_mib")
