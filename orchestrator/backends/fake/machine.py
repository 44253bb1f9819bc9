"""Commands of a fake box and their processes. A command that never waits is done at once and costs no task."""

import asyncio
import posixpath
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.backends.fake.places import Places
from orchestrator.backends.fake.process import CANNOT_BE_IGNORED, CommandResult, Job, Shell, ShellExit, Steps
from orchestrator.backends.fake.programs import PROGRAMS
from orchestrator.backends.fake.shell import call, find
from orchestrator.backends.fake.streams import Capped, Signalled, Sink, Source
from orchestrator.backends.fake.tree import Dir, Refusal, Tree, shown
from orchestrator.operations import Exec, ExecResult, Failure, FailureCode

EVENTS_BYTES = 4 * 1024 * 1024
"""Kept of what a command writes to descriptor 3 (docs/agent-protocol.md)."""
UID_COUNT = 64
AnyEnd = TypeVar("AnyEnd")
FIRST_PID = 2
BASE_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "USER": "agent",
    "LOGNAME": "agent",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
}

Waits = Generator[float | Job, None, "End"]
"""A body on its way; it ends as an `End`."""


@dataclass(frozen=True, slots=True)
class End:
    exit_code: int | None
    signal: str | None = None


@dataclass(slots=True, eq=False)
class _Process:
    """One that has, or may have, a task of its own."""

    pid: int
    command: "Command"
    task: Job | None = None
    signal: str | None = None

    def take(self, signal: str) -> None:
        if self.task is not None and not self.task.done():
            self.signal = signal
            self.task.cancel()


class Machine:
    """The processes of one box."""

    __slots__ = ("_next_pid", "listeners", "places", "processes", "tree", "uid_base")

    def __init__(self, tree: Tree, places: Places, uid_base: int) -> None:
        self.tree = tree
        self.places = places
        self.uid_base = uid_base
        self.processes: dict[int, _Process] = {}
        self.listeners: list[Callable[[int, str], bool]] = []
        """Asked about a signal for a pid that is no running process; true: it was theirs."""
        self._next_pid = FIRST_PID

    def start(self, op: Exec, *, extra_s: float = 0.0) -> "CommandResult | asyncio.Future[CommandResult]":
        """Begin a command; a future is there only where it has to wait. `extra_s` is waited first."""
        return Command(self, op).start(extra_s)

    def new_pid(self) -> int:
        self._next_pid += 1
        return self._next_pid - 1

    def kill_all(self, signal: str = "SIGKILL", *, but: int | None = None) -> int:
        """Signal every process; how many there were."""
        running = [process for process in list(self.processes.values()) if process.pid != but]
        for process in running:
            process.take(signal)
        return len(running)

    def run(
        self,
        process: "_Process",
        body: Coroutine[None, None, CommandResult | None],
        done: "asyncio.Future[CommandResult] | None",
    ) -> None:
        """Give `process` a task; `done` gets what it ends as, also where it was killed before its first step."""
        process.task = asyncio.create_task(body)
        self.processes[process.pid] = process
        process.task.add_done_callback(lambda task: self._settle(process, task, done))

    def _settle(
        self,
        process: "_Process",
        task: Job,
        done: "asyncio.Future[CommandResult] | None",
    ) -> None:
        self.processes.pop(process.pid, None)
        if done is None or done.done():
            return
        if not task.cancelled():
            error = task.exception()
            result = None if error else task.result()
            if error:
                done.set_exception(error)
            elif result:
                done.set_result(result)
        elif process.signal:
            done.set_result(process.command.killed(process.signal))
        else:
            done.cancel()

    async def end(self) -> None:
        """Cancel everything and wait until it is gone."""
        for process in self.processes.values():
            if process.task is not None:
                process.task.cancel()
        await self.quiet()

    async def quiet(self) -> None:
        """Wait for every process, and for their results to be set."""
        tasks = [process.task for process in self.processes.values() if process.task is not None]
        if tasks:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)


@dataclass(slots=True, eq=False)
class Command:
    """One exec: its own process, and what it left running beside it."""

    machine: Machine
    op: Exec
    ignored: set[str] = field(default_factory=set)
    main: _Process = field(init=False)
    stdout: Capped = field(init=False)
    stderr: Capped = field(init=False)
    events: Capped = field(init=False)

    def __post_init__(self) -> None:
        self.main = _Process(self.machine.new_pid(), self)
        self.stdout = Capped(self.op.output_limit_bytes)
        self.stderr = Capped(self.op.output_limit_bytes)
        self.events = Capped(EVENTS_BYTES)

    def start(self, extra_s: float) -> "CommandResult | asyncio.Future[CommandResult]":
        try:
            shell = self._shell()
        except Refusal as refusal:
            return refusal.failure
        if find(shell, self.op.argv[0]) is None:
            return Failure(code=FailureCode.CANNOT_START, message=f"{self.op.argv[0]}: no such program in the box")
        waits = self._body(shell, extra_s)
        try:
            first = next(waits)
        except StopIteration as ended:
            return self._result(ended.value)
        done: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        self.machine.run(self.main, self._finish(waits, first), done)
        return done

    def _shell(self) -> Shell:
        places = self.machine.places
        full = posixpath.normpath(posixpath.join(shown(places.workspace), self.op.cwd))
        cwd = tuple(name for name in full.split("/") if name)
        if not isinstance(self.machine.tree.find(cwd), Dir):
            raise Refusal(FailureCode.CANNOT_START, f"{shown(cwd)}: no such working directory")
        return Shell(
            kernel=self,
            programs=PROGRAMS,
            tree=self.machine.tree,
            places=places,
            uid=0 if self.op.principal == "trusted" else self.machine.uid_base + self.op.principal,
            env={**environment(places, self.op, self.machine.uid_base), **self.op.env},
            cwd=cwd,
            fds=self._descriptors(),
            pid=self.main.pid,
            fresh=True,
        )

    def _descriptors(self) -> "dict[int, Source | Sink]":
        fds: dict[int, Source | Sink] = {0: Source(self.op.stdin), 1: self.stdout}
        fds[2] = self.stdout if self.op.merge_stderr else self.stderr
        if self.op.events:
            fds[3] = self.events
        return fds

    def _body(self, shell: Shell, extra_s: float) -> Waits:
        try:
            if extra_s:
                yield extra_s
            return End((yield from call(shell, list(self.op.argv))))
        except ShellExit as leaving:
            return End(leaving.status)
        except Signalled as ended:
            return End(None, ended.signal)

    async def _finish(self, waits: Waits, first: float | Job) -> CommandResult | None:
        try:
            async with asyncio.timeout(self.op.timeout_s):
                return self._result(await driven(waits, first))
        except TimeoutError:
            for process in self._mine():
                process.take("SIGKILL")
            return self._result(End(None, "SIGKILL"), timed_out=True)
        finally:
            waits.close()

    def killed(self, signal: str) -> CommandResult:
        return self._result(End(None, signal))

    def _result(self, end: "End", *, timed_out: bool = False) -> CommandResult:
        for stream in (self.stdout, self.stderr, self.events):
            stream.closed = True
        events = self.events.output()
        return ExecResult(
            exit_code=end.exit_code,
            signal=end.signal,
            timed_out=timed_out,
            stdout=self.stdout.output(),
            stderr=self.stderr.output(),
            events=events.head,
            events_cut=events.cut_bytes > 0,
        )

    def _mine(self) -> list[_Process]:
        return [
            process
            for process in self.machine.processes.values()
            if process.command is self and process is not self.main
        ]

    # Kernel, as this command's shells see it

    def new_pid(self) -> int:
        return self.machine.new_pid()

    def spawn(self, pid: int, steps: Steps) -> None:
        self.machine.run(_Process(pid, self), self._beside(_ended(steps)), None)

    async def _beside(self, waits: Waits) -> None:
        try:
            await driven(waits, 0.0)
        finally:
            waits.close()

    def children(self) -> Iterable[Job]:
        for process in self._mine():
            if process.task is not None:
                yield process.task

    def signal(self, pid: int, signal: str, *, by: int) -> bool:
        if pid == 1:
            return False
        if pid == -1:
            self.machine.kill_all(signal, but=self.main.pid)
            return True
        if abs(pid) == by or pid == 0:
            return self._signal_self(by, signal)
        process = self.machine.processes.get(abs(pid))
        if process is None:
            return any(listener(abs(pid), signal) for listener in self.machine.listeners)
        if signal != "0" and (signal == CANNOT_BE_IGNORED or signal not in process.command.ignored):
            process.take(signal)
        return True

    def _signal_self(self, pid: int, signal: str) -> bool:
        if signal != "0" and (signal == CANNOT_BE_IGNORED or signal not in self.ignored):
            raise Signalled(signal, pid)
        return True

    def ignore(self, pid: int, signal: str) -> None:
        """Kept per command: its later children inherit it, and its earlier ones are taken along."""
        del pid
        self.ignored.add(signal)

    def heed(self, pid: int, signal: str) -> None:
        del pid
        self.ignored.discard(signal)


def _ended(steps: Steps) -> Waits:
    try:
        return End((yield from steps))
    except Signalled as ended:
        return End(None, ended.signal)


async def driven(waits: Generator[float | Job, None, AnyEnd], first: float | Job) -> AnyEnd:
    """Go through a body that has to wait: what it ends as."""
    waited = first
    while True:
        if isinstance(waited, asyncio.Task):
            await asyncio.wait([waited])
        else:
            await asyncio.sleep(waited)
        try:
            waited = next(waits)
        except StopIteration as done:
            end: AnyEnd = done.value
            return end


def environment(places: Places, op: Exec, uid_base: int) -> Mapping[str, str]:
    """What a command finds without asking."""
    env = {**BASE_ENV, "HOME": shown(places.home)}
    if op.principal != "trusted":
        return env
    return {
        **env,
        "TILTYARD_WORKSPACE": shown(places.workspace),
        "TILTYARD_TRUSTED_DIR": "/run/tiltyard/trusted",
        "TILTYARD_UID_BASE": str(uid_base),
        "TILTYARD_UID_COUNT": str(UID_COUNT),
    }
