"""A box's file tree in memory: copied on write by path over a base that all boxes of a template share.

An untouched box owns a handful of small directories. Hard links are copies, owners and times are not kept.
"""

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.operations import Failure, FailureCode

KEPT_BYTES = 1024 * 1024
"""Files of a template up to this size are held in memory, larger ones are read from disk when asked for."""


class Refusal(Exception):
    """An operation that cannot be done, as the agent would refuse it."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(code=code, message=message)


@dataclass(frozen=True, slots=True)
class File:
    """`data` is None for a large file of the template: its bytes are at `source`."""

    data: bytes | None
    mode: int = 0o644
    source: str = ""
    size_bytes: int = 0

    @staticmethod
    def of(data: bytes, mode: int = 0o644) -> "File":
        return File(data, mode, "", len(data))

    def read(self) -> bytes:
        if self.data is not None:
            return self.data
        with open(self.source, "rb") as handle:
            return handle.read()


@dataclass(frozen=True, slots=True)
class Symlink:
    target: str


@dataclass(frozen=True, slots=True)
class Special:
    """A FIFO, socket or device: has a name, cannot be opened."""

    mode: int = 0o644


@dataclass(slots=True)
class Dir:
    """Only the tree whose `owner` it is may change `children`."""

    children: "dict[str, Node]" = field(default_factory=dict)
    mode: int = 0o755
    owner: "Tree | None" = None


Node = File | Symlink | Special | Dir
Parts = Sequence[str]


def shown(parts: Parts) -> str:
    return "/" + "/".join(parts)


class Tree:
    """The whole root of a box. `capacity_bytes` bounds what was written, `capacity_nodes` how many names were made."""

    __slots__ = ("capacity_bytes", "capacity_nodes", "root", "used_bytes", "used_nodes")

    def __init__(self, *, capacity_bytes: int, capacity_nodes: int) -> None:
        self.root = Dir(owner=self)
        self.capacity_bytes = capacity_bytes
        self.capacity_nodes = capacity_nodes
        self.used_bytes = 0
        self.used_nodes = 0

    def mount(self, parts: Parts, node: Node) -> None:
        """Put `node` in place without counting it."""
        self._own(parts[:-1], make=True).children[parts[-1]] = node

    def walk(self, parts: Parts) -> Node:
        """The node there. A symlink on the way is refused; the last one is returned as it is."""
        node: Node = self.root
        for depth, name in enumerate(parts):
            folder = _entered(node, parts[:depth])
            found = folder.children.get(name)
            if found is None:
                raise Refusal(FailureCode.NOT_FOUND, f"{shown(parts)}: no such file or directory")
            node = found
        return node

    def find(self, parts: Parts) -> Node | None:
        """As `walk`, None where there is nothing."""
        try:
            return self.walk(parts)
        except Refusal as refusal:
            if refusal.failure.code is FailureCode.NOT_FOUND:
                return None
            raise

    def put(self, parts: Parts, node: Node, *, parents: bool = False) -> None:
        """Place `node`, over what is there. Raises Refusal (not_found, not_a_directory, symlink, no_space)."""
        before = self.find(parts)
        added = _weight(node) - (_weight(before) if before else 0)
        if self.used_bytes + added > self.capacity_bytes:
            raise Refusal(FailureCode.NO_SPACE, f"{shown(parts)}: no space left on the box's disk")
        if before is None and self.used_nodes >= self.capacity_nodes:
            raise Refusal(FailureCode.NO_SPACE, f"{shown(parts)}: no inodes left on the box's disk")
        self._own(parts[:-1], make=parents).children[parts[-1]] = node
        self.used_bytes += added
        self.used_nodes += before is None

    def remove(self, parts: Parts) -> None:
        """Take the node away, with all below it. Raises Refusal (not_found)."""
        gone = self.walk(parts)
        del self._own(parts[:-1], make=False).children[parts[-1]]
        self.used_bytes = max(0, self.used_bytes - sum(_weight(node) for _, node in below(gone)))
        self.used_nodes = max(0, self.used_nodes - 1)

    def _own(self, parts: Parts, *, make: bool) -> Dir:
        """The directory there, ours to change: every shared one on the way is copied first."""
        folder = self.root
        for depth, name in enumerate(parts):
            child = folder.children.get(name)
            if child is None:
                if not make:
                    raise Refusal(FailureCode.NOT_FOUND, f"{shown(parts)}: no such file or directory")
                child = Dir(owner=self)
                self.used_nodes += 1
            entered = _entered(child, parts[: depth + 1])
            if entered.owner is not self:
                entered = Dir(dict(entered.children), entered.mode, self)
            folder.children[name] = entered
            folder = entered
        return folder


def _entered(node: Node, parts: Parts) -> Dir:
    if isinstance(node, Symlink):
        raise Refusal(FailureCode.SYMLINK, f"{shown(parts)}: is a symbolic link")
    if not isinstance(node, Dir):
        raise Refusal(FailureCode.NOT_A_DIRECTORY, f"{shown(parts)}: not a directory")
    return node


def _weight(node: Node) -> int:
    return node.size_bytes if isinstance(node, File) else 0


def below(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """`node` itself and everything under it, by relative path ("" is `node`), parents first, names sorted by bytes."""
    yield prefix, node
    if isinstance(node, Dir):
        for name in sorted(node.children, key=os.fsencode):
            yield from below(node.children[name], f"{prefix}/{name}" if prefix else name)


def load(lowers: Sequence[str]) -> Dir:
    """Read a template's overlay layers, topmost first, into one shared tree. Blocking. Raises OSError."""
    merged = Dir()
    for lower in reversed(lowers):
        merged = _merge(merged, lower)
    return merged


def _merge(under: Dir, folder: str) -> Dir:
    children = {} if _opaque(folder) else dict(under.children)
    with os.scandir(folder) as entries:
        for entry in entries:
            node = _loaded(entry, children.get(entry.name))
            if node is None:
                children.pop(entry.name, None)
            else:
                children[entry.name] = node
    return Dir(children, stat.S_IMODE(os.stat(folder).st_mode))


def _loaded(entry: "os.DirEntry[str]", under: Node | None) -> Node | None:
    """The node of one directory entry; None for an overlay white-out."""
    status = entry.stat(follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    if entry.is_symlink():
        return Symlink(os.readlink(entry.path))
    if entry.is_dir(follow_symlinks=False):
        return _merge(under if isinstance(under, Dir) else Dir(), entry.path)
    if entry.is_file(follow_symlinks=False):
        return _file(entry.path, mode, status.st_size)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return None
    return Special(mode)


def _file(path: str, mode: int, size_bytes: int) -> File:
    if size_bytes > KEPT_BYTES:
        return File(None, mode, path, size_bytes)
    with open(path, "rb") as handle:
        return File.of(handle.read(), mode)


def _opaque(folder: str) -> bool:
    """Whether an overlay layer hides what lies under this directory."""
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(folder, name) == b"y":
                return True
        except OSError:
            continue
    return False


class Bases:
    """Templates that were read, once each. Thread-safe, since reading is done in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], Dir] = {}

    def known(self, lowers: tuple[str, ...]) -> Dir | None:
        return self._known.get(lowers)

    def load(self, lowers: tuple[str, ...]) -> Dir:
        """Blocking. Raises OSError."""
        with self._lock:
            if lowers not in self._known:
                self._known[lowers] = load(lowers)
            return self._known[lowers]
