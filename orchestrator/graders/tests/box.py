"""Hands a plan to a grading box, puts the agent's changes into it, has the tests run, and reads what comes back."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath

from orchestrator.errors import GraderError
from orchestrator.graders.tests.delta import MAX_JUDGED_BYTES
from orchestrator.graders.tests.frames import BadFrames, Run, read_frames
from orchestrator.graders.tests.plan import Plan
from orchestrator.interfaces import GraderBox
from orchestrator.models import FileChange, Limits
from orchestrator.operations import Exec, ExecResult, Failure, OperationResult, Put, Read, ReadResult

RUNNER = ("__init__", "child", "director", "sweep", "zygote")

START = (
    'exec "$0" -I -S -B --check-hash-based-pycs always -c '
    "'import sys; sys.path.append(sys.argv[1]); from tiltyard_runner.director import main; "
    'sys.path.remove(sys.argv[1]); main(sys.argv[2])\' "$TILTYARD_TRUSTED_DIR" "$1"'
)
"""Without `site`: no .pth, no sitecustomize, no user packages; no byte code that was not made from its source. $0: python, $1: the command."""

MARGIN_S = 60.0
"""Beyond the children's own time-outs, for sweeping after each and re-running those that were late."""

DELETE_TIMEOUT_S = 60.0
FILE_MIB = 512
"""Largest file that a child may write; more would be the disk's cap to stop."""

CHILD_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}


class NotApplied(Exception):
    """The agent's changes cannot be put into the box, or do not build: its own failure. The text says why."""


async def install(box: GraderBox, plan: Plan, limits: Limits, *, output_bytes: int = 0) -> None:
    """The runner, the plan and the base commit's tests, out of the code's reach; before anything of the agent's. Raises GraderError."""
    _done(
        await box.run(Put(path=".", tar=trusted_tar(plan, limits, output_bytes), principal="trusted")),
        "be given the tests",
    )
    done = await box.run(_trusted(plan, "prepare", timeout_s=MARGIN_S))
    if not isinstance(done, ExecResult) or done.exit_code != 0:
        raise GraderError(f"the grading box could not be prepared: {_why(done)}")


async def read_bases(box: GraderBox, paths: Sequence[str]) -> dict[str, bytes]:
    """What the base commit has at those paths; call it before `apply`."""
    found = {}
    for path in paths:
        result = await box.run(Read(path=path, limit_bytes=MAX_JUDGED_BYTES))
        if isinstance(result, ReadResult):
            found[path] = result.data
    return found


async def apply(box: GraderBox, changed: Sequence[tuple[FileChange, bytes]], deleted: Sequence[str]) -> None:
    """Raises NotApplied."""
    if deleted:
        names = b"".join(path.encode() + b"\0" for path in deleted)
        await _as_agent(box, ("xargs", "-0", "rm", "-f", "--"), DELETE_TIMEOUT_S, "deleting files", stdin=names)
    if changed:
        result = await box.run(Put(path=".", tar=delta_tar(changed)))
        if isinstance(result, Failure):
            raise NotApplied(f"the changes could not be put into a fresh repository: {result.code}")


async def rebuild(box: GraderBox, command: str, timeout_s: float) -> None:
    """Raises NotApplied."""
    await _as_agent(box, ("/bin/sh", "-c", command), timeout_s, "the rebuild command")


async def run_tests(box: GraderBox, plan: Plan) -> Run:
    """The children's reports. Raises GraderError if not one child was begun; an incomplete run is returned as such."""
    result = await box.run(_trusted(plan, "run", timeout_s=2 * plan.budget_s + MARGIN_S, events=True))
    if not isinstance(result, ExecResult):
        raise GraderError(f"the tests could not be started: {_why(result)}")
    try:
        run = read_frames(result.events)
    except BadFrames as error:
        raise GraderError(f"the test runner's frames cannot be read: {error}") from None
    if run.begun is None:
        raise GraderError(f"the tests could not be started: {_why(result)}")
    return run


def _trusted(plan: Plan, command: str, *, timeout_s: float, events: bool = False) -> Exec:
    return Exec(
        argv=("/bin/sh", "-c", START, plan.interpreter, command),
        timeout_s=timeout_s,
        principal="trusted",
        events=events,
    )


async def _as_agent(box: GraderBox, argv: tuple[str, ...], timeout_s: float, what: str, stdin: bytes = b"") -> None:
    result = await box.run(Exec(argv=argv, timeout_s=timeout_s, stdin=stdin))
    if not isinstance(result, ExecResult) or result.exit_code != 0:
        raise NotApplied(f"{what} failed: {_ending(result)}")


def _done(result: OperationResult, what: str) -> None:
    if isinstance(result, Failure):
        raise GraderError(f"the grading box could not {what}: {result.code}")


def _ending(result: OperationResult) -> str:
    """How a command of the agent's code ended: nothing of its output."""
    match result:
        case ExecResult(timed_out=True):
            return "it ran out of time"
        case ExecResult(exit_code=int(code)):
            return f"it exited with {code}"
        case ExecResult(signal=str(name)):
            return f"it was ended by {name}"
        case Failure(code=code):
            return str(code)
    return "no result"


def _why(result: OperationResult) -> str:
    """How a command of ours ended, with the end of its output: our own words, or the interpreter's."""
    text = result.stdout.tail or result.stdout.head if isinstance(result, ExecResult) else b""
    last = text.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
    return f"{_ending(result)} {last[-300:]}".strip()


def trusted_tar(plan: Plan, limits: Limits, output_bytes: int) -> bytes:
    """What goes into the trusted folder. The plan is for root's eyes; the rest may be read by the children."""
    source = resources.files("orchestrator.graders.tests.runner")
    files = {f"tiltyard_runner/{name}.py": (0o644, source.joinpath(f"{name}.py").read_bytes()) for name in RUNNER}
    files["own.ini"] = 0o644, b"[pytest]\n"
    files["plan.json"] = 0o600, json.dumps(_plan_json(plan, limits, output_bytes)).encode()
    return _tar(files)


def _plan_json(plan: Plan, limits: Limits, output_bytes: int) -> dict[str, object]:
    children = [
        {"target": child.target, "files": dict(child.files), "functions": child.functions} for child in plan.children
    ]
    return {
        "children": children,
        "always": dict(plan.always),
        "hidden": sorted(plan.hidden),
        "trees": sorted(plan.trees),
        "roots": list(plan.roots),
        "arguments": list(plan.arguments),
        "argv": list(plan.argv),
        "timeout_s": plan.timeout_s,
        "budget_s": plan.budget_s,
        "env": CHILD_ENV,
        "rlimits": {
            "CORE": 0,
            "NOFILE": limits.open_files,
            "NPROC": max(16, limits.pids // 2),  # the rest is for the runner, which must be able to fork to end them
            "FSIZE": FILE_MIB * 1024 * 1024,
        },
        "output_bytes": output_bytes,
    }


def delta_tar(changed: Sequence[tuple[FileChange, bytes]]) -> bytes:
    """Modes as git knows them, executable or not: children run as other uids and must be able to read."""
    return _tar({change.path: (0o755 if change.mode & 0o100 else 0o644, data) for change, data in changed})


def _tar(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in _folders(files):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, (mode, data) in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size = mode, len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _folders(paths: Mapping[str, object]) -> list[str]:
    """Parents before their children."""
    return sorted({str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."})
