"""What the descriptors of a fake process lead to."""

from typing import Protocol

from orchestrator.backends.fake.tree import File, Tree
from orchestrator.operations import Output

PIPE_BYTES = 1024 * 1024
"""How much one stage of a pipeline may write before the next one runs; then it dies of SIGPIPE."""


class Signalled(Exception):
    """The process with that pid dies of `signal`."""

    def __init__(self, signal: str, pid: int) -> None:
        super().__init__(signal)
        self.signal = signal
        self.pid = pid


class Sink(Protocol):
    def write(self, data: bytes) -> None: ...


class Source:
    """Bytes to read from, each once."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes = b"") -> None:
        self._data = data
        self._at = 0

    def read(self, limit: int | None = None) -> bytes:
        end = len(self._data) if limit is None else self._at + limit
        piece = self._data[self._at : end]
        self._at += len(piece)
        return piece

    def line(self) -> bytes:
        end = self._data.find(b"\n", self._at)
        return self.read(None if end < 0 else end + 1 - self._at)


class Nothing:
    """/dev/null, and a closed pipe."""

    def write(self, data: bytes) -> None:
        del data


class Buffer:
    """A pipe or a command substitution."""

    __slots__ = ("_limit", "_pid", "data")

    def __init__(self, pid: int, limit: int = PIPE_BYTES) -> None:
        self.data = bytearray()
        self._limit = limit
        self._pid = pid

    def write(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > self._limit:
            del self.data[self._limit :]
            raise Signalled("SIGPIPE", self._pid)


class ToFile:
    """An open file of the box's tree. Raises Refusal when the disk is full."""

    __slots__ = ("_data", "_mode", "_parts", "_tree")

    def __init__(self, tree: Tree, parts: tuple[str, ...], before: File | None, *, append: bool) -> None:
        self._tree = tree
        self._parts = parts
        self._mode = before.mode if before else 0o644
        self._data = before.read() if before and append else b""
        self.write(b"")

    def write(self, data: bytes) -> None:
        self._data += data
        self._tree.put(self._parts, File.of(self._data, self._mode))


class Capped:
    """Half of the limit kept as head, half as tail, cut at UTF-8 boundaries; closed when the command's own process has ended."""

    __slots__ = ("_half", "_head", "_limit", "_tail", "_total", "closed")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0
        self.closed = False

    def write(self, data: bytes) -> None:
        if self.closed:
            return
        self._total += len(data)
        room = self._limit - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data)[-self._limit :] if self._limit else bytearray()

    def output(self) -> Output:
        if self._total <= self._limit:
            return Output(head=bytes(self._head), total_bytes=self._total)
        head = whole_end(bytes(self._head[: self._half]))
        tail = whole_start(bytes(self._tail[len(self._tail) - (self._limit - self._half) :]))
        return Output(head=head, tail=tail, cut_bytes=self._total - len(head) - len(tail), total_bytes=self._total)


def whole_end(data: bytes) -> bytes:
    """Without a UTF-8 sequence that is begun and not ended at the end; other bytes are left alone."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return data[:-back] if length > back else data
    return data


def whole_start(data: bytes) -> bytes:
    """Without continuation bytes (at most three) at the start."""
    skipped = 0
    while skipped < min(3, len(data)) and data[skipped] & 0xC0 == 0x80:
        skipped += 1
    return data[skipped:]
