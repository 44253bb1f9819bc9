"""Named shells of a fake box: what a shell keeps lies here between its calls; a call is a command of the machine.

A script is never out of reach here, so a time-out keeps the session; only a script that ignores SIGINT has its shell replaced, as in a real box.
"""

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, field

from orchestrator.backends.fake.machine import Command, Machine, driven, environment
from orchestrator.backends.fake.process import CommandResult, Job, Shell, ShellExit
from orchestrator.backends.fake.programs import PROGRAMS
from orchestrator.backends.fake.shell import run
from orchestrator.backends.fake.streams import Signalled, Source
from orchestrator.backends.fake.syntax import ShellSyntaxError, parse
from orchestrator.operations import Exec, Failure, FailureCode, Session, SessionFate, SessionResult, Started

MAX_SESSIONS = 8
LOOP_NAME = "sh"
Running = Generator[float | Job, None, CommandResult]


@dataclass(slots=True, eq=False)
class _State:
    """What one shell holds between calls."""

    pid: int
    tty: bool
    env: dict[str, str]
    cwd: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


class Sessions:
    """The named shells of one box."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.shells: dict[str, _State] = {}
        self.begun: set[str] = set()
        self.turns: dict[str, Job] = {}
        machine.listeners.append(self._signalled)

    def start(self, op: Session, *, extra_s: float = 0.0) -> "CommandResult | asyncio.Future[CommandResult]":
        """Begin a script; a future is there only where it has to wait."""
        if "\0" in op.script:
            return Failure(code=FailureCode.CANNOT_START, message="the script holds a NUL byte")
        return _Script(self, op).begin(extra_s)

    def _signalled(self, pid: int, signal: str) -> bool:
        """A signal for a shell between its calls; every one but 0 ends it."""
        name = next((name for name, shell in self.shells.items() if shell.pid == pid), None)
        if name is not None and signal != "0":
            del self.shells[name]
        return name is not None


class _Script(Command):
    """One script in its session."""

    def __init__(self, sessions: Sessions, op: Session) -> None:
        exec_op = Exec(argv=(LOOP_NAME,), timeout_s=op.timeout_s, output_limit_bytes=op.output_limit_bytes)
        Command.__init__(self, sessions.machine, exec_op)
        self.sessions = sessions
        self.session_op = op
        self.started = Started.NO
        self.before: _State | None = None

    def begin(self, extra_s: float) -> "CommandResult | asyncio.Future[CommandResult]":
        turn = self.sessions.turns.get(self.session_op.name)
        waits = self._steps(extra_s, turn if turn is not None and not turn.done() else None)
        try:
            first = next(waits)
        except StopIteration as ended:
            result: CommandResult = ended.value
            return result
        done: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        self.machine.run(self.main, self._ending(waits, first), done)
        if self.main.task is not None:
            self.sessions.turns[self.session_op.name] = self.main.task
        return done

    def _steps(self, extra_s: float, turn: Job | None) -> Running:
        if turn is not None:
            yield turn
        state = self._opened()
        if isinstance(state, Failure):
            return state
        if extra_s:
            yield extra_s
        shell = self._in_state(state)
        try:
            code = yield from run(shell, parse(self.session_op.script))
        except ShellSyntaxError as error:
            shell.say(f"{LOOP_NAME}: syntax error: {error}")
            return self._told(2)
        except ShellExit as leaving:
            return self._ended(leaving.status)
        except Signalled as ended:
            return self._ended(None, ended.signal)
        state.cwd = shell.cwd
        return self._told(code)

    def _opened(self) -> _State | Failure:
        """The session's shell, made where there is none."""
        op, sessions = self.session_op, self.sessions
        state = sessions.shells.get(op.name)
        if state is not None and state.tty is not op.tty:
            return Failure(
                code=FailureCode.EXISTS, message=f"session {op.name} runs; take another name, or end it with exit"
            )
        if state is None:
            if len(sessions.shells) >= MAX_SESSIONS:
                return Failure(code=FailureCode.CANNOT_START, message=f"{MAX_SESSIONS} sessions run, as many as may")
            self.started = Started.AGAIN if op.name in sessions.begun else Started.FIRST
            sessions.begun.add(op.name)
            env = dict(environment(self.machine.places, self.op, self.machine.uid_base))
            state = _State(self.machine.new_pid(), op.tty, env, self.machine.places.workspace)
            sessions.shells[op.name] = state
        self.before = _State(state.pid, state.tty, dict(state.env), state.cwd)
        return state

    def _in_state(self, state: _State) -> Shell:
        return Shell(
            kernel=self,
            programs=PROGRAMS,
            tree=self.machine.tree,
            places=self.machine.places,
            uid=self.machine.uid_base,
            env=state.env,
            cwd=state.cwd,
            fds={0: Source(b""), 1: self.stdout, 2: self.stdout},
            pid=state.pid,
            variables=state.variables,
        )

    async def _ending(self, waits: Running, first: float | Job) -> CommandResult:
        try:
            async with asyncio.timeout(self.op.timeout_s):
                return await driven(waits, first)
        except TimeoutError:
            for process in self._mine():
                process.take("SIGKILL")
            return self._timed_out()
        finally:
            waits.close()

    def _timed_out(self) -> SessionResult:
        deaf = "SIGINT" in self.ignored and self.before is not None
        if deaf and self.before is not None:
            self.sessions.shells[self.session_op.name] = self.before
        return self._told(None, fate=SessionFate.RESTARTED if deaf else SessionFate.KEPT, timed_out=True)

    def killed(self, signal: str) -> SessionResult:
        return self._ended(None, signal)

    def _ended(self, code: int | None, signal: str | None = None) -> SessionResult:
        self.sessions.shells.pop(self.session_op.name, None)
        return self._told(code, signal, fate=SessionFate.ENDED)

    def _told(
        self,
        code: int | None,
        signal: str | None = None,
        *,
        fate: SessionFate = SessionFate.KEPT,
        timed_out: bool = False,
    ) -> SessionResult:
        self.stdout.closed = True
        return SessionResult(
            exit_code=code,
            signal=signal,
            timed_out=timed_out,
            started=self.started,
            fate=fate,
            output=self.stdout.output(),
        )
