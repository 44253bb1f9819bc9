"""End everything that runs as one uid, and remove what it left where other uids could find it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable

WIPE_ROOTS = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock")  # noqa: S108
"""Where a Debian image lets any uid write. Only what the uid owns there is removed."""

SWEEP_LIMIT_S = 10.0
"""A kill loop beat 300-process bombs within 0.3 s; one that needs longer than this has lost."""


def become(real: int, effective: int, saved: int) -> None:
    """Leave root for good; capabilities go with it."""
    os.setgroups([])
    os.setresgid(effective, effective, effective)
    os.setresuid(real, effective, saved)


def in_child(work: Callable[[], bool]) -> bool:
    """Run `work` in a forked process; True if it returned True. Nothing of it stays in this process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def clear(uid: int, sweeper_uid: int) -> bool:
    """End every process of `uid`, then remove its files and System V objects; False if anything stays.

    The killer's real and saved uid are `sweeper_uid`, which nothing else uses: those it kills cannot kill it.
    """
    return in_child(lambda: _kill_loop(uid, sweeper_uid) and _wipe(uid))


def _kill_loop(uid: int, sweeper_uid: int) -> bool:
    become(sweeper_uid, uid, sweeper_uid)
    end = time.monotonic() + SWEEP_LIMIT_S
    while time.monotonic() < end:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return True
        # kill(-1) succeeds as long as anybody's process is there, so ask /proc who is left.
        if not any(_runs_as(uid, pid) for pid in os.listdir("/proc") if pid.isdigit()):
            return True
    return False


def _runs_as(uid: int, pid: str) -> bool:
    if pid == str(os.getpid()):
        return False
    try:
        with open("/proc/" + pid + "/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return False
    return str(uid) in fields.get("Uid", "").split() and fields.get("State", "").split()[:1] not in (["Z"], ["X"])


def _wipe(uid: int) -> bool:
    """As the owner: the runner has no right over other people's files. Nothing runs as `uid` any more."""
    os.setresuid(uid, uid, uid)
    os.chdir("/")
    for path in _owned(uid):
        with contextlib.suppress(OSError, RecursionError):
            _remove(path)
    left = _owned(uid)
    if left:  # made hard to remove: locked directories, or nested deeper than Python's own removal goes
        _run("/bin/chmod", "-R", "u+rwX", "--", *left)
        _run("/bin/rm", "-rf", "--", *left)
    _remove_ipc(uid)
    return not _owned(uid) and not _ipc(uid)


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _owned(uid: int) -> list[str]:
    found = []
    for root in WIPE_ROOTS:
        try:
            names = os.listdir(root)
        except OSError:
            continue
        for name in names:
            path = os.path.join(root, name)
            try:
                if os.lstat(path).st_uid == uid:
                    found.append(path)
            except OSError:
                continue
    return found


def _run(*argv: str) -> None:
    """Absolute paths of the image's own programs, an empty environment, no output."""
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.execve(argv[0], argv, {})  # noqa: S606 - the whole point: no shell
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def _ipc(uid: int) -> list[tuple[str, int]]:
    """(kind, id) of the System V objects that `uid` made or owns."""
    found = []
    for kind, id_field in (("shm", "shmid"), ("sem", "semid"), ("msg", "msqid")):
        try:
            with open("/proc/sysvipc/" + kind, encoding="ascii") as file:
                header = file.readline().split()
                rows = [dict(zip(header, line.split())) for line in file]  # noqa: B905
        except OSError:
            continue
        found += [(kind, int(row[id_field])) for row in rows if str(uid) in (row["uid"], row["cuid"])]
    return found


def _remove_ipc(uid: int) -> None:
    objects = _ipc(uid)
    if not objects:
        return
    import ctypes  # rarely needed, and not cheap

    libc = ctypes.CDLL(None)
    remove = {
        "shm": lambda number: libc.shmctl(number, 0, None),
        "msg": lambda number: libc.msgctl(number, 0, None),
        "sem": lambda number: libc.semctl(number, 0, 0),
    }
    for kind, number in objects:
        remove[kind](number)


def close_to_others(uid: int, roots: list[str]) -> bool:
    """Take the world's write permission from what `uid` owns below `roots`: no place for children to leave word for each other."""
    return in_child(lambda: _take_write(uid, roots))


def _take_write(uid: int, roots: list[str]) -> bool:
    become(uid, uid, uid)
    stack = list(roots)
    for root in roots:
        _take_write_from(uid, root)
    while stack:
        try:
            entries = list(os.scandir(stack.pop()))
        except OSError:
            continue
        for entry in entries:
            _take_write_from(uid, entry.path)
            if entry.is_dir(follow_symlinks=False):
                stack.append(entry.path)
    return True


def _take_write_from(uid: int, path: str) -> None:
    try:
        status = os.lstat(path)
    except OSError:
        return
    if status.st_uid == uid and status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode):
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~stat.S_IWOTH)
