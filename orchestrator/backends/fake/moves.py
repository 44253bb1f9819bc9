"""What the host itself moves in and out of a box's tree: put, get, delta."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Literal

from orchestrator.backends.fake.files import printable, regular
from orchestrator.backends.fake.places import Places
from orchestrator.backends.fake.tree import Dir, File, Node, Refusal, Symlink, Tree, below, shown
from orchestrator.operations import (
    Change,
    Delta,
    DeltaResult,
    FailureCode,
    Get,
    GetResult,
    Manifest,
    ManifestFile,
    ManifestSymlink,
    Put,
    PutResult,
)

TRUSTED_DIR = ("run", "tiltyard", "trusted")
EXECUTABLE = 0o111


def put(tree: Tree, places: Places, op: Put) -> PutResult:
    """Raises Refusal, also for a tar that holds anything but regular files and directories."""
    target = _below_trusted(op.path) if op.principal == "trusted" else places.writable(op.path)
    members = _members(op.tar)
    for member, data in members:
        parts = (*target, *_inner(member.name))
        if member.isdir():
            _make_folder(tree, parts, member.mode & 0o777)
        else:
            _replace(tree, parts, File.of(data, member.mode & 0o777))
    files = [data for member, data in members if member.isreg()]
    return PutResult(files=len(files), size_bytes=sum(map(len, files)))


def _below_trusted(path: str) -> tuple[str, ...]:
    if path.startswith("/"):
        raise Refusal(FailureCode.OUTSIDE, f"{path}: a trusted put names a path below the trusted folder")
    return (*TRUSTED_DIR, *_inner(path))


def _inner(name: str) -> tuple[str, ...]:
    names = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in names or "\0" in name:
        raise Refusal(FailureCode.BAD_PATH, f"{name!r}: not a path below the folder")
    return names


def _members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    if len(data) % tarfile.BLOCKSIZE:  # a header cut short would be taken for the end
        raise Refusal(FailureCode.IO, "not a tar: it ends in the middle of a block")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            return [(member, _content(archive, member)) for member in archive]
    except tarfile.TarError as error:
        raise Refusal(FailureCode.IO, f"not a tar: {error}") from None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.isdir() and not member.name.startswith("/"):
        return b""
    if not member.isreg() or member.name.startswith("/"):
        raise Refusal(FailureCode.BAD_PATH, f"{member.name!r}: only regular files and directories may be put")
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _make_folder(tree: Tree, parts: tuple[str, ...], mode: int) -> None:
    there = tree.find(parts)
    if there is None:
        tree.put(parts, Dir(mode=mode, owner=tree), parents=True)
    elif not isinstance(there, Dir):
        raise Refusal(FailureCode.NOT_A_DIRECTORY, f"{shown(parts)}: not a directory")


def _replace(tree: Tree, parts: tuple[str, ...], file: File) -> None:
    there = tree.find(parts)
    if there is not None:
        regular(there, parts)
    tree.put(parts, file, parents=True)


def get(tree: Tree, places: Places, op: Get) -> GetResult:
    """Raises Refusal (too_large, and whatever a read of one of the paths would raise)."""
    root = places.readable(op.root)
    files = [(path, regular(tree.walk((*root, *_inner(path))), (*root, *_inner(path)))) for path in op.paths]
    if sum(file.size_bytes for _, file in files) > op.max_bytes:
        raise Refusal(FailureCode.TOO_LARGE, f"the files are larger than {op.max_bytes} bytes")
    return GetResult(tar=_packed(files))


def _packed(files: list[tuple[str, File]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, file in files:
            info = tarfile.TarInfo(path)
            info.size, info.mode = file.size_bytes, file.mode
            archive.addfile(info, io.BytesIO(file.read()))
    return buffer.getvalue()


def delta(tree: Tree, places: Places, op: Delta) -> DeltaResult:
    """Raises Refusal (not_found, not_a_directory)."""
    parts = places.readable(op.root)
    root = tree.walk(parts)
    if not isinstance(root, Dir):
        raise Refusal(FailureCode.NOT_A_DIRECTORY, f"{shown(parts)}: not a directory")
    here: dict[str, Node] = {
        path: node for path, node in below(root) if not isinstance(node, Dir) and _counts(path, op.ignore)
    }
    changes = sorted(
        (*_differences(here, op.manifest), *_deletions(here, op.manifest, op.ignore)), key=lambda c: c.path
    )
    return DeltaResult(
        changes=tuple(changes[: op.max_entries]), truncated=len(changes) > op.max_entries, files=len(here)
    )


def _counts(path: str, ignore: tuple[str, ...]) -> bool:
    return bool(path) and path.partition("/")[0] not in ignore


def _differences(here: dict[str, Node], manifest: Manifest) -> Iterator[Change]:
    for path, node in here.items():
        was = manifest.get(path)
        if not _same(node, was):
            yield _change(path, node, "added" if was is None else "modified")


def _same(node: Node, was: ManifestFile | ManifestSymlink | None) -> bool:
    if isinstance(node, File) and isinstance(was, ManifestFile):
        same_mode = not (node.mode ^ was.mode) & EXECUTABLE
        return same_mode and node.size_bytes == was.size_bytes and _sha256(node) == was.sha256
    return isinstance(node, Symlink) and isinstance(was, ManifestSymlink) and node.target == was.target


def _sha256(file: File) -> str:
    return hashlib.sha256(file.read()).hexdigest()


def _change(path: str, node: Node, kind: Literal["added", "modified"]) -> Change:
    text = printable(path)
    if isinstance(node, File) and text == path:
        return Change(
            path=path, kind=kind, type="file", mode=node.mode, size_bytes=node.size_bytes, sha256=_sha256(node)
        )
    return Change(path=text, kind=kind, type="symlink" if isinstance(node, Symlink) and text == path else "other")


def _deletions(here: dict[str, Node], manifest: Manifest, ignore: tuple[str, ...]) -> Iterator[Change]:
    for path, was in manifest.items():
        if path not in here and _counts(path, ignore):
            yield Change(path=path, kind="deleted", type="file" if isinstance(was, ManifestFile) else "symlink")
