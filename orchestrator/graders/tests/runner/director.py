"""Runs the children of a plan one after another and reports what became of each on the events channel (fd 3).

Plan: `plan.json` in the trusted folder, 0600. Frames, one JSON object a line: {"begun": n}, then per child {"child", "status" (as from wait,
null: not started), "timed_out", "clean", "events" (base64 of zlib of the child's lines), "cut", "output" (base64)}, then {"done": n}.
A child that ran out of time is run once more after all others, and its second frame counts.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import stat
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from . import sweep, zygote

EVENTS_FD = 3
MAX_EVENTS_BYTES = 4 * 1024 * 1024
"""Of one child. 20,000 tests of 120 bytes are 2.4 MB."""

PATIENCE_S = 90.0
"""Beyond a child's own time-out: sweeping and wiping after it."""


@dataclass(frozen=True)
class Box:
    """Where things are, from the environment of a trusted exec."""

    workspace: str
    trusted: str
    uid_base: int
    uid_count: int

    @property
    def tests(self) -> str:
        """The tests' own tree, outside the repository; node ids are relative to it."""
        return os.path.join(self.trusted, "tests")

    @property
    def sweeper_uid(self) -> int:
        return self.uid_base + self.uid_count - 1

    def uid(self, number: int) -> int:
        """Of the child with that number: neither the agent's commands' nor the sweeper's; taken again once swept."""
        return self.uid_base + 1 + number % (self.uid_count - 2)


def main(command: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(0o022)
    box = Box(
        workspace=os.environ["TILTYARD_WORKSPACE"],
        trusted=os.environ["TILTYARD_TRUSTED_DIR"],
        uid_base=int(os.environ["TILTYARD_UID_BASE"]),
        uid_count=int(os.environ["TILTYARD_UID_COUNT"]),
    )
    {"prepare": prepare, "run": run}[command](box)


def read_plan(box: Box) -> dict[str, Any]:
    with open(os.path.join(box.trusted, "plan.json"), encoding="utf-8") as file:
        plan: dict[str, Any] = json.load(file)
        return plan


def prepare(box: Box) -> None:
    """Copy the base commit's tests out of the repository, before anything of the agent's is put into it."""
    plan = read_plan(box)
    os.makedirs(box.tests, exist_ok=True)
    hidden = frozenset(plan["hidden"])
    for root in plan["trees"]:
        for path in _files(box.workspace, root):
            if path not in hidden:
                _copy(os.path.join(box.workspace, path), os.path.join(box.tests, path))
    for path, text in plan["always"].items():
        write_file(os.path.join(box.tests, path), text)


def _files(workspace: str, root: str) -> Iterator[str]:
    """Regular files at or below `root`, and links to regular files of the repository; relative to it."""
    top = os.path.realpath(workspace) + os.sep
    stack = [root]
    while stack:
        path = stack.pop()
        full = os.path.join(workspace, path)
        if os.path.isdir(full) and not os.path.islink(full):
            stack += [os.path.join(path, name) for name in sorted(os.listdir(full)) if name != ".git"]
        elif os.path.isfile(full) and os.path.realpath(full).startswith(top):
            yield path


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, 0o555 if os.stat(source).st_mode & stat.S_IXUSR else 0o444)


def write_file(path: str, text: str) -> None:
    """Root's, read-only; every version of a file has the same times."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
    os.utime(path, (0, 0))


def run(box: Box) -> None:
    os.set_inheritable(EVENTS_FD, False)
    control, remote = socket.socketpair()
    if os.fork() == 0:
        # Before the plan is read: what this process never knew, no child of it can find in its memory.
        try:
            control.close()
            os.close(EVENTS_FD)
            zygote.serve(remote)
        finally:
            os._exit(70)
    remote.close()
    with control, os.fdopen(EVENTS_FD, "wb") as channel:
        plan = read_plan(box)
        _make_ready(box)
        if control.recv(3) != b"up\n":
            sys.exit("tiltyard: pytest could not be imported by this image's python3; it must be installed for it")
        _direct(box, plan, control, channel)


def _make_ready(box: Box) -> None:
    """End what the rebuild left, and close places where children could leave word for each other."""
    agent = box.uid_base
    if not sweep.clear(agent, box.sweeper_uid) or not sweep.close_to_others(agent, [box.workspace]):
        sys.exit("tiltyard: what ran before the tests could not be ended")


def _direct(box: Box, plan: dict[str, Any], control: socket.socket, channel: BinaryIO) -> None:
    children = plan["children"]
    _emit(channel, {"begun": len(children)})
    late = []
    end = time.monotonic() + plan["budget_s"]
    for number in range(len(children)):
        frame = _run_child(box, plan, control, number, number, end)
        if frame["timed_out"]:
            late.append(number)
        _emit(channel, frame)
    end = time.monotonic() + plan["budget_s"]
    for again, number in enumerate(late):
        _emit(channel, _run_child(box, plan, control, number, len(children) + again, end))
    _emit(channel, {"done": len(children)})


def _emit(channel: BinaryIO, frame: dict[str, Any]) -> None:
    channel.write(json.dumps(frame, separators=(",", ":")).encode() + b"\n")
    channel.flush()


def _run_child(
    box: Box, plan: dict[str, Any], control: socket.socket, number: int, run_number: int, end: float
) -> dict[str, Any]:
    """The frame of child `number`, run as the uid for `run_number`."""
    child = plan["children"][number]
    timeout_s = min(plan["timeout_s"], end - time.monotonic())
    if timeout_s <= 0:
        return {
            "child": number,
            "status": None,
            "timed_out": True,
            "clean": True,
            "events": "",
            "cut": False,
            "output": "",
        }
    files = {os.path.join(box.tests, path): text for path, text in child["files"].items()}
    for path, text in files.items():
        write_file(path, text)
    try:
        request = _request(box, plan, child, box.uid(run_number), timeout_s)
        report, events, cut, output = _exchange(control, request, plan["output_bytes"])
    finally:
        for path in files:
            os.unlink(path)
    packed = base64.b64encode(zlib.compress(events)).decode()
    return {"child": number, **report, "events": packed, "cut": cut, "output": base64.b64encode(output).decode()}


def _request(box: Box, plan: dict[str, Any], child: dict[str, Any], uid: int, timeout_s: float) -> dict[str, Any]:
    """What the child gets to know: nothing here differs between a real file and its siblings."""
    roots = [os.path.normpath(os.path.join(box.workspace, root)) for root in plan["roots"]]
    arguments = ["-c", os.path.join(box.trusted, "own.ini"), "--rootdir", box.tests, "--confcutdir", box.tests]
    arguments += ["-p", "no:cacheprovider", *plan["arguments"], os.path.join(box.tests, child["target"])]
    return {
        "uid": uid,
        "sweeper_uid": box.sweeper_uid,
        "timeout_s": timeout_s,
        "rlimits": plan["rlimits"],
        "cwd": box.tests if plan["argv"] else box.workspace,
        "env": {**plan["env"], "PYTHONPATH": os.pathsep.join(roots)},
        "roots": roots,
        "functions": child["functions"],
        "argv": plan["argv"],
        "arguments": arguments,
    }


def _exchange(
    control: socket.socket, request: dict[str, Any], output_bytes: int
) -> tuple[dict[str, Any], bytes, bool, bytes]:
    """Have one child run: the warden's report, the child's lines, whether they were cut, the end of its output."""
    events, events_in = os.pipe()
    output, output_in = os.pipe()
    try:
        zygote.send_request(control, request, [events_in, output_in])
    finally:
        os.close(events_in)
        os.close(output_in)
    with _Pipe(events, MAX_EVENTS_BYTES, keep_end=False) as lines, _Pipe(output, output_bytes, keep_end=True) as text:
        report = _attend(control, (lines, text), request["timeout_s"] + PATIENCE_S)
        return report, bytes(lines.kept), lines.cut, bytes(text.kept)


def _attend(control: socket.socket, pipes: tuple[_Pipe, ...], limit_s: float) -> dict[str, Any]:
    """Read the pipes until the warden has reported, and then what is left in them."""
    line = b""
    end = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        for pipe in pipes:
            selector.register(pipe.fd, selectors.EVENT_READ, pipe)
        while not line.endswith(b"\n"):
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready or time.monotonic() > end:
                sys.exit("tiltyard: a child's warden does not answer")
            for key, _mask in ready:
                if key.data is None:
                    part = control.recv(4096)
                    if not part:
                        sys.exit("tiltyard: the zygote is gone")
                    line += part
                elif key.data.read_once():
                    selector.unregister(key.fd)
    for pipe in pipes:
        pipe.drain()
    report: dict[str, Any] = json.loads(line)
    return report


class _Pipe:
    """The read end of a child's pipe: keeps the first, or the last, `limit` bytes."""

    def __init__(self, fd: int, limit: int, keep_end: bool) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.kept = bytearray()
        self.cut = False
        self._limit = limit
        self._keep_end = keep_end

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.fd)

    def read_once(self) -> bool:
        """True at the end of the stream."""
        data = os.read(self.fd, 65536)
        self.kept += data
        if len(self.kept) > self._limit:
            self.cut = True
            if self._keep_end:
                del self.kept[: len(self.kept) - self._limit]
            else:
                del self.kept[self._limit :]
        return not data

    def drain(self) -> None:
        """What is there now; where a writer outlived the sweep there is no end of stream to wait for."""
        end = time.monotonic() + 1.0
        with contextlib.suppress(BlockingIOError):
            while not self.read_once() and time.monotonic() < end:
                pass
