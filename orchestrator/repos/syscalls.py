"""The few Linux calls that Python does not have: mounts by descriptor (kernel >= 5.19), plain mount and umount, syncfs.

Each raises OSError as the kernel says it; none interprets anything. Numbers above 423 are the same on every architecture.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_MOUNT_SETATTR = 442

_OPEN_TREE_CLONE = 1
_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOATIME = 1024
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_IDMAP = 0x00100000
UMOUNT_NOFOLLOW = 8


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of <linux/mount.h>."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _checked(_libc().syscall(ctypes.c_long(number), *arguments), what)


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    result = _libc().mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data)
    )
    _checked(result, f"mount {kind}")


def umount(target: Path) -> None:
    """umount2(2), never following a symlink."""
    _checked(_libc().umount2(os.fsencode(target), UMOUNT_NOFOLLOW), "umount")


def syncfs(fd: int) -> None:
    """Write out the file system that `fd` lies on."""
    _checked(_libc().syncfs(fd), "syncfs")


def open_tree_clone(path: Path) -> int:
    """A detached clone of the mount below `path`; it lives as long as the descriptor, or until attached."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | _CLOEXEC)
    return _syscall("open_tree", _OPEN_TREE, ctypes.c_int(AT_FDCWD), os.fsencode(path), flags)


def set_mount_attributes(mount_fd: int, attributes: int, userns_fd: int = 0) -> None:
    """mount_setattr(2) on a detached mount."""
    record = _MountAttr(attr_set=attributes, attr_clr=0, propagation=0, userns_fd=userns_fd)
    size = ctypes.c_size_t(ctypes.sizeof(record))
    _syscall(
        "mount_setattr",
        _MOUNT_SETATTR,
        ctypes.c_int(mount_fd),
        b"",
        ctypes.c_uint(AT_EMPTY_PATH),
        ctypes.byref(record),
        size,
    )


def attach(mount_fd: int, target: Path) -> None:
    """move_mount(2): put a detached mount at `target`."""
    _syscall(
        "move_mount",
        _MOVE_MOUNT,
        ctypes.c_int(mount_fd),
        b"",
        ctypes.c_int(AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )


def detached_mount(kind: str, options: dict[str, str], attributes: int) -> int:
    """A new file system that no path names: it is gone when the descriptor closes, however this process dies."""
    context = _syscall("fsopen", _FSOPEN, kind.encode(), ctypes.c_uint(_FSOPEN_CLOEXEC))
    try:
        for key, value in options.items():
            _fsconfig(context, _FSCONFIG_SET_STRING, key.encode(), os.fsencode(value))
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
        flags = ctypes.c_uint(_FSMOUNT_CLOEXEC)
        return _syscall("fsmount", _FSMOUNT, ctypes.c_int(context), flags, ctypes.c_uint(attributes))
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    _syscall("fsconfig", _FSCONFIG, ctypes.c_int(context), ctypes.c_uint(command), key, value, ctypes.c_int(0))
