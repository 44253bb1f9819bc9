"""A sparse ext4 of exact size per box, over a loop device that frees itself: the hard cap in bytes and inodes.

No journal, no barriers: such a disk is thrown away with its box and need not outlive the machine's fall.
"""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

from orchestrator.repos import mounts, syscalls

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_LOOP_CONFIG = struct.Struct("=II QQQQQIIII 64s 64s 32s QQ 64x")
"""`struct loop_config` of <linux/loop.h>: fd, block size, then loop_info64 (only flags and file name are ours), reserved."""

INODE_BYTES = 256
"""ext4's usual inode: nanosecond times and overlay's attributes fit inside."""
_GROUP_BYTES = 128 * 1024 * 1024
_GROUP_OVERHEAD_BYTES = 64 * 1024
"""Super block copies, group descriptors and bitmaps of one block group, generously."""
_ATTEMPTS = 50
_FEATURES = (
    "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,uninit_bg"
)
"""Named in full, since defaults differ between distributions; no journal, no room to grow."""


def image_bytes(*, usable_bytes: int, inodes: int) -> int:
    """Size of an image on which about `usable_bytes` can be used once inode tables and bitmaps are taken off. A multiple of 4 KiB."""
    raw = usable_bytes + inodes * INODE_BYTES
    groups = raw // _GROUP_BYTES + 1
    return -(-(raw + groups * _GROUP_OVERHEAD_BYTES) // 4096) * 4096


def make_disk(image: Path, *, usable_bytes: int, inodes: int) -> None:
    """Make a sparse, formatted `image`. Raises OSError, FileNotFoundError (no mkfs.ext4), subprocess.CalledProcessError."""
    fd = os.open(image, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, image_bytes(usable_bytes=usable_bytes, inodes=inodes))
    finally:
        os.close(fd)
    command = [_program(), "-q", "-F", "-b", "4096", "-m", "0", "-I", str(INODE_BYTES), "-N", str(inodes)]
    command += ["-O", _FEATURES, "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(image)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


def _program() -> str:
    """mkfs.ext4 lies in a folder that is not on every root's PATH."""
    return shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "mkfs.ext4"


def mount_disk(image: Path, target: Path) -> None:
    """Mount `image` at `target`; its loop device goes with the last mount. Raises OSError."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        device, number = _configure(backing, image)
        try:  # the device clears itself when nobody holds it: keep it open until the mount does
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOATIME
            syscalls.mount(f"/dev/loop{number}", target, "ext4", flags, "nobarrier,noinit_itable")
        finally:
            os.close(device)
    finally:
        os.close(backing)


def _configure(backing: int, image: Path) -> tuple[int, int]:
    """Claim a free loop device: (its descriptor, its number). Others claim too, so a lost race is tried again."""
    name = os.fsencode(image)[-63:]
    # Direct: a box that writes without end then waits for its own disk, and does not fill the machine's page cache with what others must wait for.
    # The kernel passes it over where the backing file system has no direct I/O.
    zero, flags = (0,) * 5, _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO
    config = _LOOP_CONFIG.pack(backing, 0, *zero, 0, 0, 0, flags, name, b"", b"", 0, 0)
    for _ in range(_ATTEMPTS):
        number = _free_number()
        device = -1
        try:
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            return device, number
        except OSError as error:
            if device >= 0:
                os.close(device)
            if error.errno not in (errno.EBUSY, errno.ENXIO):
                raise
    raise OSError(errno.EBUSY, "no loop device could be claimed")


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def backing_files() -> dict[str, Path]:
    """Loop device name -> the file behind it, of every loop in use on this machine."""
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = entry.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            continue  # it was cleared between the listing and the reading
        found[entry.parts[3]] = Path(text.rstrip("\n").removesuffix(" (deleted)"))
    return found


def wait_released(folder: Path) -> None:
    """Return when no loop device has its file inside `folder`. Raises OSError (EBUSY) after `mounts.BUSY_WAIT_S`."""
    give_up = time.monotonic() + mounts.BUSY_WAIT_S
    while any(folder in backing.parents for backing in backing_files().values()):
        if time.monotonic() > give_up:
            raise OSError(errno.EBUSY, "a loop device is still in use")
        time.sleep(0.01)
