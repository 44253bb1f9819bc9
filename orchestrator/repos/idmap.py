"""Id-mapped clones of a folder: its files, all of one owner, show as a box's uid; nothing is copied or chowned."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from orchestrator.repos import syscalls

_READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


@contextmanager
def user_namespace(owner: int, shown_as: int) -> Iterator[int]:
    """Descriptor of a user namespace that maps id `owner` of the disk to `shown_as`, for uids and gids, and nothing else.

    A namespace needs a process to be born in: `unshare --user cat`, which answers one byte once it has moved, and ends with its stdin.
    Raises OSError, FileNotFoundError (no util-linux).
    """
    child = subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    with ExitStack() as stack:
        stack.enter_context(child)  # closes the pipes, which ends `cat`, and reaps it
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"?")
        if child.stdout.read(1) != b"?":
            raise OSError("no user namespace could be made")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text(f"{owner} {shown_as} 1\n")
        descriptor = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        yield descriptor


def attach_mapped(source: Path, target: Path, userns_fd: int) -> None:
    """Show `source` at `target`, read-only, with owners mapped by the namespace. Raises OSError."""
    clone = syscalls.open_tree_clone(source)
    try:
        syscalls.set_mount_attributes(clone, _READ_ONLY | syscalls.MOUNT_ATTR_IDMAP, userns_fd)
        syscalls.attach(clone, target)
    finally:
        os.close(clone)  # an open descriptor would keep the mount busy
