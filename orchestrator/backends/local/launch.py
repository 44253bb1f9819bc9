"""Starts a box's first process so that it is nobody's child of ours: it outlives us, and is on record before it does anything.

The launcher says its pid and waits for one line. We write the pid down, then send the line; if we die before that, the launcher reads the
end of the pipe and goes, so that no box ever runs of which no record tells.
"""

import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.backends.local import processes
from orchestrator.backends.local.processes import Known, Record
from orchestrator.errors import StartFailed

LAUNCHER = """
printf '%s\\n' "$$" && IFS= read -r go || exit 1
entered=$1 && shift
while [ "$entered" -gt 0 ]; do
    echo "$$" >"$1" || exit 1
    shift && entered=$((entered - 1))
done
exec "$@" </dev/null >&2
"""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""All that the box's first process is told of ours; what it starts in the box is told nothing."""
HELLO_S = 10.0
LOG = "start.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to start: `command` gets the descriptors as they are numbered here; `entered` are `cgroup.procs` files."""

    folder: Path
    command: Sequence[str]
    entered: Sequence[str]
    descriptors: Sequence[int]


def launch(order: Order) -> Known:
    """The box's first process, begun and on record in `order.folder`. Blocks for milliseconds. Raises StartFailed, OSError."""
    arguments = ["setsid", "--fork", "sh", "-c", LAUNCHER, "launch", str(len(order.entered)), *order.entered]
    with (order.folder / LOG).open("ab") as log:
        starter = subprocess.Popen(
            [*arguments, *order.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=ENVIRONMENT,
            cwd="/",
            pass_fds=order.descriptors,
            bufsize=0,
        )
    with starter:  # closes the pipes, which ends a launcher that was not told to go
        assert starter.stdin is not None
        assert starter.stdout is not None
        pid = _hello(starter.stdout.fileno())
        if starter.wait(timeout=HELLO_S) != 0:  # from here on the launcher is the machine's, not our child
            raise StartFailed("the box's launcher did not start")
        process = processes.known(pid)
        if process is None:
            raise StartFailed("the box's launcher ended at once")
        processes.write_record(order.folder, Record(process=process, created_at=time.time()))
        starter.stdin.write(b"go\n")
    return process


def _hello(descriptor: int) -> int:
    """Raises StartFailed."""
    said = b""
    while not said.endswith(b"\n"):
        if not select.select([descriptor], [], [], HELLO_S)[0]:
            raise StartFailed("the box's launcher did not answer")
        part = os.read(descriptor, 64)
        if not part:
            raise StartFailed("the box's launcher could not be started: is util-linux (setsid) installed?")
        said += part
    return int(said)


def log_tail(folder: Path) -> str:
    """The end of what the launcher, bubblewrap or the agent complained of; paths of this machine stay in it. Blocks."""
    try:
        with (folder / LOG).open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 2000))
            return log.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
