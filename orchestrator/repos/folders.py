"""The layout of a box's folder, its record, and a removal that hostile modes cannot stop."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from orchestrator.errors import Misconfigured, StartFailed
from orchestrator.interfaces import Template
from orchestrator.models import SandboxId
from orchestrator.repos.space import Space

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}")
BOXES = "boxes"
RECORD = "box.json"
OVERFULL = "overfull"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxRecord:
    """What is written beside a box for whoever finds it later. `expires_at` is wall-clock seconds; `space` is there where it is watched."""

    template: str | None
    expires_at: float | None
    space: Space | None = None


@dataclass(frozen=True, slots=True)
class BoxFolder:
    """Names inside one box's folder. `writable` holds upper, work, tmp and home: the loop disk's root, or a plain folder."""

    root: Path

    @property
    def agent(self) -> Path:
        return self.root / "agent"

    @property
    def image(self) -> Path:
        return self.root / "disk.img"

    @property
    def writable(self) -> Path:
        return self.root / "disk"

    @property
    def upper(self) -> Path:
        return self.writable / "upper"

    @property
    def work(self) -> Path:
        return self.writable / "work"

    @property
    def tmp(self) -> Path:
        return self.writable / "tmp"

    @property
    def home(self) -> Path:
        return self.writable / "home"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    def lower(self, number: int) -> Path:
        return self.root / f"lower{number}"

    @property
    def overfull(self) -> Path:
        """A mark: the box took more than its space and was ended for it."""
        return self.root / OVERFULL

    def record(self, template: Template | None, expires_at: float | None, space: Space | None = None) -> None:
        """Write `box.json`."""
        limits = [space.bytes, space.inodes] if space else None
        text = json.dumps({"template": template.key if template else None, "expires_at": expires_at, "space": limits})
        (self.root / RECORD).write_text(text, encoding="utf-8")


def check_name(name: str, what: str) -> str:
    """`name`, if it is safe as one path component. Raises Misconfigured."""
    if not _NAME.fullmatch(name):
        raise Misconfigured(
            f"{what} {name!r}: use letters, digits, '_', '.', '-', at most 100, a letter or digit first"
        )
    return name


def box_folder(boxes: Path, sandbox_id: SandboxId) -> BoxFolder:
    return BoxFolder(boxes / check_name(sandbox_id, "sandbox id"))


def refuse_existing(box: BoxFolder) -> None:
    """Raises StartFailed for a box that is there already, or was and left something."""
    if box.root.exists():
        raise StartFailed(f"box {box.root.name} exists already: remove it first")


def read_record(folder: Path) -> BoxRecord | None:
    """None where there is none, or a killed process left half of one."""
    try:
        raw = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    template, expires_at = raw.get("template"), raw.get("expires_at")
    space: Space | None = None
    match raw.get("space"):
        case [int(in_bytes), int(inodes)]:
            space = Space(bytes=in_bytes, inodes=inodes)
    return BoxRecord(
        template=template if isinstance(template, str) else None,
        expires_at=float(expires_at) if isinstance(expires_at, int | float) else None,
        space=space,
    )


def templates_in_use(state_dir: Path) -> frozenset[str]:
    """Keys of the templates under the boxes of every deployment of `state_dir`."""
    records = (read_record(path.parent) for path in state_dir.glob(f"*/{BOXES}/*/{RECORD}"))
    return frozenset(record.template for record in records if record and record.template)


def names_below(boxes: Path, paths: "list[Path] | tuple[Path, ...]") -> set[SandboxId]:
    """Which boxes of `boxes` the given paths lie in."""
    inside = (path for path in paths if boxes in path.parents)
    return {SandboxId(path.relative_to(boxes).parts[0]) for path in inside}


def remove_tree(folder: Path) -> None:
    """Remove `folder` whole; symlinks are not followed, folders without rights are opened up first. Idempotent. Raises OSError."""
    try:
        _remove_tree(folder)
    except (RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENAMETOOLONG):
            raise
        _remove_deep_tree(folder)


def _remove_deep_tree(folder: Path) -> None:
    """Deeper than this process may recurse or has descriptors for: `rm` walks without either."""
    done = subprocess.run(["rm", "-rf", "--", str(folder)], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise OSError(errno.ENOTEMPTY, "a deep tree could not be removed")


def _remove_tree(folder: Path) -> None:
    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=_open_up_and_retry)
    else:
        shutil.rmtree(folder, onerror=lambda function, path, info: _open_up_and_retry(function, path, info[1]))


def try_remove_tree(folder: Path) -> None:
    """`remove_tree`, where a leftover is worth a warning and no more: without root, a killed set-up leaves files of its own root's."""
    try:
        remove_tree(folder)
    except OSError as error:
        log.warning("leftover_stays", folder=str(folder), error=error.strerror)


def _open_up_and_retry(function: Callable[..., object], path: str, error: BaseException) -> None:
    if isinstance(error, FileNotFoundError):
        return
    if not isinstance(error, PermissionError):
        raise error
    parent = os.path.dirname(path)
    _add_rights(parent)
    if function in (os.rmdir, os.unlink):
        function(path)
    elif _is_folder(path):
        _remove_closed_folder(path)
    else:
        os.unlink(path)


def _remove_closed_folder(path: str) -> None:
    """A folder that could not be listed: ours to open, or (overlay's own, empty) another's, which rmdir takes all the same."""
    try:
        _add_rights(path)
    except PermissionError:
        os.rmdir(path)
    else:
        remove_tree(Path(path))


def _add_rights(path: str) -> None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def disk_usage_bytes(folder: Path) -> int:
    """Blocks held below `folder` on its own file system, in bytes; what vanishes meanwhile, or may not be entered, is passed over."""
    try:
        device = folder.stat().st_dev
    except FileNotFoundError:
        return 0
    total = 0
    pending = [str(folder)]
    while pending:
        for path, info in _listed(pending.pop()):
            if info.st_dev == device:
                total += info.st_blocks * 512
                if stat.S_ISDIR(info.st_mode):
                    pending.append(path)
    return total


def _listed(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                yield entry.path, entry.stat(follow_symlinks=False)
