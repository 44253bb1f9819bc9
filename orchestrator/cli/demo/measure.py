"""Find test ids by running them: the outcome of every test of given files, in a throw-away box, with and without the gold answer."""

import io
import re
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence

from orchestrator.errors import GraderError, TiltyardError
from orchestrator.interfaces import Sandbox, SandboxBackend, SandboxSpec, Template
from orchestrator.models import CallKey, Epoch, JobId, Limits, OpId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import Exec, ExecResult, OperationResult, Put, PutResult

RUN_TIMEOUT_S = 240.0
MAX_OUTPUT_BYTES = 512 * 1024
"""What the agent keeps of one stream at most."""
SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (\S.*)$")


def parse_summary(text: str) -> dict[str, str]:
    """Node id -> outcome from pytest's `-rA` summary lines."""
    outcomes: dict[str, str] = {}
    for line in text.splitlines():
        match = SUMMARY.match(line)
        if match and "::" in match[2]:
            outcomes[match[2].split(" - ")[0].strip()] = match[1]
    return outcomes


def tar_of(files: Mapping[str, str]) -> bytes:
    """A tar of text files, mode 0644."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, text in sorted(files.items()):
            data = text.encode()
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


async def outcomes(
    backend: SandboxBackend, template: Template, files: Mapping[str, str], tests: Sequence[str]
) -> dict[str, str]:
    """Outcome of each test in `tests` (paths) over the template with `files` laid over it. Raises GraderError."""
    sandbox_id = SandboxId(f"measure-{uuid.uuid4().hex[:12]}")
    spec = SandboxSpec(image=template.image, template=template, limits=Limits(), grader=True)
    deadline = time.monotonic() + RUN_TIMEOUT_S + 60
    try:
        box = await backend.create(sandbox_id, spec, deadline=deadline)
        try:
            return await _run(box, files, tests, deadline)
        finally:
            await box.aclose()
    finally:
        await backend.destroy(sandbox_id)


async def _run(box: Sandbox, files: Mapping[str, str], tests: Sequence[str], deadline: float) -> dict[str, str]:
    await box.lease(RolloutKey(job=JobId("demo"), trace_id=TraceId(box.id)), Epoch(1))
    put = await box.run(Put(path=".", tar=tar_of(files)), op_id=OpId(call=CallKey("put"), number=0), deadline=deadline)
    if not isinstance(put, PutResult):
        raise GraderError(f"measuring: the files did not unpack: {put}")
    command = ("python3", "-m", "pytest", "-q", "-rA", "--tb=no", "-p", "no:cacheprovider", *tests)
    run = Exec(argv=command, timeout_s=RUN_TIMEOUT_S, output_limit_bytes=MAX_OUTPUT_BYTES)
    key = CallKey("run")
    header = PendingCall(key=key, sequence=1, tool="measure", arguments={}, operations=0)
    return read_outcomes(await box.run(run, op_id=OpId(call=key, number=0), deadline=deadline, call=header))


def read_outcomes(result: OperationResult) -> dict[str, str]:
    """Raises GraderError when pytest did not come to its summary."""
    if not isinstance(result, ExecResult) or result.timed_out or result.stdout.cut_bytes:
        raise GraderError(f"measuring the tests failed: {type(result).__name__}")
    found = parse_summary(result.stdout.head.decode(errors="replace") + result.stdout.tail.decode(errors="replace"))
    if not found:
        raise GraderError(f"measuring found no test; pytest said: {result.stdout.tail[-500:]!r}")
    return found


def split_ids(base: Mapping[str, str], gold: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(fail_to_pass, pass_to_pass). Raises TiltyardError when the gold answer turns no test."""
    passing = {test for test, outcome in gold.items() if outcome == "PASSED"}
    kept = {test for test in passing if base.get(test) == "PASSED"}
    turned = {test for test in passing if base.get(test) in ("FAILED", "ERROR")}
    if not turned:
        raise TiltyardError("the newer release's tests all pass on the older source: nothing to solve")
    return tuple(sorted(turned)), tuple(sorted(kept))
