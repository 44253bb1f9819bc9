"""One run of one hidden test file, in a process of its own. Hostile from the first import of the agent's code on.

It reports over its pipe, one JSON list a line: ["setup", errno] if it could not become one, ["ready"] before anything of the agent's is
imported, ["test", id, outcome] once a test is over, ["collect", id] for what could not be collected, ["finish", exit code]. Whatever runs
here can write there, too: who believes these lines without the must-fail siblings is lost.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from typing import Any, NoReturn

from . import sweep

SETUP_FAILED = 71
ENDED_ODDLY = 72

OUTCOMES = ("passed", "xpassed", "xfailed", "skipped", "failed", "error")
"""Best to worst: a test's outcome is the worst of its phases."""


class Reporter:
    """A pytest plugin, passed as an object: keeps the tests that were asked for and reports each once."""

    def __init__(self, fd: int, functions: list[str] | None) -> None:
        self._fd = fd
        self._functions = None if functions is None else frozenset(functions)
        self._worst: dict[str, str] = {}

    def send(self, *fields: object) -> None:
        line = json.dumps(fields).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Whole functions are kept or dropped: a parameter's id differs between the real file and a sibling."""
        if self._functions is not None:
            items[:] = [item for item in items if item.nodeid.split("[", 1)[0] in self._functions]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.send("collect", report.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        outcome = _outcome(report)
        before = self._worst.get(report.nodeid, "passed")
        self._worst[report.nodeid] = max(before, outcome, key=OUTCOMES.index)
        if report.when == "teardown":
            self.send("test", report.nodeid, self._worst.pop(report.nodeid))


def _outcome(report: Any) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.failed:
        return "failed" if report.when == "call" else "error"
    return "skipped" if report.skipped else "passed"


def main(request: dict[str, Any], events: int, output: int) -> NoReturn:
    """Become the child that `request` describes; never returns."""
    code = SETUP_FAILED
    try:
        reporter = Reporter(_own_fds(events, output), request["functions"])
        try:
            _enter(request)
        except OSError as error:
            reporter.send("setup", error.errno or 0)
            raise
        code = ENDED_ODDLY
        reporter.send("ready")
        if request["argv"]:
            os.execvpe(request["argv"][0], request["argv"], dict(os.environ))  # noqa: S606 - no shell on purpose
        code = _pytest(request, reporter)
    except BaseException:  # noqa: BLE001 - the process ends here, and says why on its output
        traceback.print_exc()
    finally:
        os._exit(code)


def _enter(request: dict[str, Any]) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # the first to go; root's file from here on, so it stays
    for name, value in request["rlimits"].items():
        _lower(getattr(resource, "RLIMIT_" + name), value)
    uid = request["uid"]
    sweep.become(uid, uid, uid)
    os.umask(0o022)
    home = tempfile.mkdtemp(dir="/tmp")  # the one place of the box that any uid may write
    tempfile.tempdir = None
    os.environ.clear()
    os.environ.update(request["env"], HOME=home, TMPDIR=home)
    os.chdir(request["cwd"])


def _own_fds(events: int, output: int) -> int:
    """0 is empty, 1 and 2 are the output, 3 the events (not inherited by programs that tests start); nothing else is open."""
    null = os.open(os.devnull, os.O_RDONLY)
    high = [os.dup(fd) for fd in (null, output, output, events)]
    while min(high) < 4:
        high = [os.dup(fd) for fd in high]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target != 3)
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return 3


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _pytest(request: dict[str, Any], reporter: Reporter) -> int:
    import pytest  # the zygote has it already

    sys.path.extend(request["roots"])
    sys.argv = ["pytest"]
    code = int(pytest.main(request["arguments"], plugins=[reporter]))
    reporter.send("finish", code)
    sys.stdout.flush()
    return code
