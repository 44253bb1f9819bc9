"""A process of a fake box, as its shell and programs see it: descriptors, environment, files, signals."""

import asyncio
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.backends.fake.places import Places
from orchestrator.backends.fake.streams import Nothing, Sink, Source, ToFile
from orchestrator.backends.fake.tree import Dir, File, Node, Refusal, Symlink, Tree
from orchestrator.operations import ExecResult, Failure, FailureCode, SessionResult

CommandResult = ExecResult | SessionResult | Failure
Job = asyncio.Task[CommandResult | None]
"""What carries a process that has to wait."""
Steps = Generator[float | Job, None, int]

LOOP_PAUSE_S = 0.0005
"""A turn of `while` gives the event loop this much, so that an endless loop meets its time-out."""
MAX_LINKS = 16
SIGNALS = {"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGPIPE": 13, "SIGTERM": 15}
CANNOT_BE_IGNORED = "SIGKILL"


class ShellExit(Exception):
    """`exit`: ends the shell it is raised in."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Complaint(Exception):
    """A program's failure: told on its stderr, with this status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Kernel(Protocol):
    """What a process asks of its box."""

    def new_pid(self) -> int: ...

    def spawn(self, pid: int, steps: Steps) -> None:
        """Run `steps` beside the caller, as part of the caller's command."""
        ...

    def children(self) -> Iterable[Job]:
        """Background processes of this command that still run."""
        ...

    def signal(self, pid: int, signal: str, *, by: int) -> bool:
        """False: no such process, or not one that may be signalled. Raises Signalled for the caller itself."""
        ...

    def ignore(self, pid: int, signal: str) -> None: ...

    def heed(self, pid: int, signal: str) -> None:
        """Undo `ignore`."""
        ...


Program = Callable[["Shell", list[str]], "int | Steps"]


@dataclass(slots=True)
class Shell:
    """One shell process: what it inherits and what it changes. `env` is exported, `variables` are its own."""

    kernel: Kernel
    programs: Mapping[str, Program]
    tree: Tree
    places: Places
    uid: int
    env: dict[str, str]
    cwd: tuple[str, ...]
    fds: dict[int, "Source | Sink"]
    pid: int
    params: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    status: int = 0
    last_background: int = 0
    fresh: bool = False
    """The process has not become a program yet: the one it is asked for takes its pid."""

    def fork(self, **changes: object) -> "Shell":
        """A child: the same but for `changes`, what it alters stays its own."""
        child = replace(self, env=dict(self.env), variables=dict(self.variables), fds=dict(self.fds))
        for name, value in changes.items():
            setattr(child, name, value)
        return child

    # Descriptors

    def out(self, data: bytes, fd: int = 1) -> None:
        sink = self.fds.get(fd)
        if sink is not None and not isinstance(sink, Source):
            sink.write(data)

    def say(self, text: str) -> None:
        self.out((text + "\n").encode("utf-8", "surrogateescape"), 2)

    def stdin(self) -> Source:
        source = self.fds.get(0)
        return source if isinstance(source, Source) else Source()

    # Files, as a process sees them: links are followed, `..` climbs

    def locate(self, path: str, *, follow: bool = True) -> tuple[str, ...]:
        """Raises Complaint."""
        if "\0" in path or not path:
            raise Complaint(f"{path!r}: No such file or directory")
        try:
            return self._resolved((), path if path.startswith("/") else "/".join((*self.cwd, path)), follow, MAX_LINKS)
        except Refusal as refusal:
            raise Complaint(said(path, refusal)) from None

    def _resolved(self, base: tuple[str, ...], path: str, follow: bool, links: int) -> tuple[str, ...]:
        parts = list(() if path.startswith("/") else base)
        names = [name for name in path.split("/") if name not in ("", ".")]
        for index, name in enumerate(names):
            if name == "..":
                parts = parts[:-1]
                continue
            node = self.tree.find((*parts, name))
            if isinstance(node, Symlink) and (follow or index < len(names) - 1):
                if links == 0:
                    raise Refusal(FailureCode.IO, "Too many levels of symbolic links")
                parts = list(self._resolved(tuple(parts), node.target, True, links - 1))
            else:
                parts.append(name)
        return tuple(parts)

    def node(self, path: str, *, follow: bool = True) -> Node | None:
        parts = self.locate(path, follow=follow)
        try:
            return self.tree.find(parts)
        except Refusal:
            return None

    def content(self, path: str) -> bytes:
        """Raises Complaint."""
        if path == "/dev/null":
            return b""
        node = self.node(path)
        if isinstance(node, File):
            if not node.mode & 0o444:
                raise Complaint(f"{path}: Permission denied")
            return node.read()
        raise Complaint(f"{path}: {'Is a directory' if isinstance(node, Dir) else 'No such file or directory'}")

    def place(self, path: str, node: Node) -> None:
        """Raises Complaint."""
        parts = self.writable(path, follow=False)
        try:
            self.tree.put(parts, node)
        except Refusal as refusal:
            raise Complaint(said(path, refusal)) from None

    def writable(self, path: str, *, follow: bool = True) -> tuple[str, ...]:
        """Raises Complaint."""
        parts = self.locate(path, follow=follow)
        if not self.places.holds(parts):
            raise Complaint(f"{path}: Read-only file system")
        return parts

    def open_out(self, path: str, *, append: bool) -> Sink:
        """Raises Complaint."""
        if path == "/dev/null":
            return Nothing()
        parts = self.writable(path)
        node = self.node(path)
        if node is not None and not isinstance(node, File):
            raise Complaint(f"{path}: {'Is a directory' if isinstance(node, Dir) else 'Permission denied'}")
        try:
            return ToFile(self.tree, parts, node, append=append)
        except Refusal as refusal:
            raise Complaint(said(path, refusal)) from None


def said(path: str, refusal: Refusal) -> str:
    text = {
        FailureCode.NOT_FOUND: "No such file or directory",
        FailureCode.NOT_A_DIRECTORY: "Not a directory",
        FailureCode.NO_SPACE: "No space left on device",
    }.get(refusal.failure.code, refusal.failure.message)
    return f"{path}: {text}"


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def options_of(args: list[str], known: str) -> tuple[set[str], list[str]]:
    options: set[str] = set()
    rest = list(args)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        option = rest.pop(0)
        if option == "--":
            break
        if not set(option[1:]) <= set(known):
            raise Complaint(f"invalid option '{option}' (the fake box knows -{known})", 2)
        options |= set(option[1:])
    return options, rest
