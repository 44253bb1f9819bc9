"""What a box can connect to, asked of the static probe that is put into it."""

import asyncio
import io
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import SandboxError
from orchestrator.interfaces import Sandbox
from orchestrator.models import CallKey, OpId, PendingCall
from orchestrator.operations import Exec, ExecResult, Put, PutResult

PLACE, NAME = "/tmp", "tiltyard-trial"  # noqa: S108  (in the box)
TRIAL_S = 30.0


async def dial(box: Sandbox, probe: Path, targets: Sequence[str]) -> Mapping[str, str]:
    """`targets` ("address port") -> connected, refused, unreachable, unresolved. The box is leased, and new. Raises SandboxError."""
    deadline = time.monotonic() + TRIAL_S
    tar = await asyncio.to_thread(_packed, probe)
    put = await box.run(Put(path=PLACE, tar=tar), op_id=OpId(call=CallKey("trial"), number=0), deadline=deadline)
    if not isinstance(put, PutResult):
        raise SandboxError("the box did not take the probe")
    call = PendingCall(key=CallKey("dial"), sequence=1, tool="trial", arguments={}, operations=0)
    op = Exec(argv=(f"{PLACE}/{NAME}", "tcp", *targets), timeout_s=TRIAL_S)
    done = await box.run(op, op_id=OpId(call=call.key, number=0), deadline=deadline + TRIAL_S, call=call)
    if not isinstance(done, ExecResult) or done.exit_code != 0:
        raise SandboxError("the box's probe failed")
    lines = done.stdout.head.decode("utf-8", "replace").splitlines()
    pairs = (line.partition("\t") for line in lines)
    return {target: met for target, _, met in pairs}


def _packed(probe: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(NAME)
        data = probe.read_bytes()
        info.size, info.mode = len(data), 0o755
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
