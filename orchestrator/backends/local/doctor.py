"""Looks at this machine as the local backend would use it: what `tiltyard doctor --backend local` prints."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from orchestrator.backends.checks import Check, fail, ok, warn
from orchestrator.backends.local import callfilter, cgroups
from orchestrator.backends.local.cgroups import CONTROLLERS, Hierarchies
from orchestrator.backends.local.notices import LOST
from orchestrator.backends.local.root import check_shown
from orchestrator.backends.local.settings import LocalSettings
from orchestrator.errors import Misconfigured

LEAST_BWRAP = (0, 8, 0)
"""The first with --disable-userns, and with --perms and --size for tmpfs."""
TRY_S = 10.0
INSTALL = "apt-get install bubblewrap util-linux libseccomp2"
TRY_BOX = ("bwrap", "--unshare-pid", "--unshare-net", "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib")
TRY_END = ("--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin", "--proc", "/proc", "--", "true")


def inspect_machine(settings: LocalSettings) -> list[Check]:
    """Blocks for some hundred milliseconds."""
    rooted = os.geteuid() == 0
    checks = [_bwrap(), _box(rooted), _filter(), *limits(cgroups.present(), rooted=rooted), _shown(settings)]
    if not rooted:
        checks.insert(2, _overlay(settings))
    return checks


def _said(*command: str) -> tuple[int, str]:
    """Exit status and what was said; 127 when there is no such program."""
    if shutil.which(command[0]) is None:
        return 127, f"{command[0]} is not installed"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TRY_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not end"
    return done.returncode, (done.stdout + done.stderr).strip()


def _bwrap() -> Check:
    return judge_bwrap(*_said("bwrap", "--version"))


def judge_bwrap(status: int, said: str) -> Check:
    """Pure."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", said)
    if status != 0 or found is None:
        return fail("bubblewrap", said or "bwrap does not say its version", INSTALL)
    version = tuple(map(int, found.groups()))
    if version < LEAST_BWRAP:
        least = ".".join(map(str, LEAST_BWRAP))
        return fail("bubblewrap", f"{found[0]} is older than {least}", f"install {least} or newer")
    return ok("bubblewrap", found[0])


def _box(rooted: bool) -> Check:
    """A box as small as can be: shows whether namespaces may be made at all."""
    status, said = _said(*TRY_BOX, *TRY_END)
    if status == 0:
        return ok("namespaces", "can be made" if rooted else "can be made without root")
    fix = (
        "run outside of a container, or as its privileged root"
        if rooted
        else "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
    )
    return fail("namespaces", said.rpartition("\n")[2][:200] or f"bwrap ended with status {status}", fix)


def _overlay(settings: LocalSettings) -> Check:
    """Without root a box mounts its own overlay, in a user namespace of its own, on the state folder's file system."""
    place = next(folder for folder in (settings.state_dir, *settings.state_dir.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            for name in ("lower", "upper", "work", "merged"):
                Path(folder, name).mkdir()
            options = "lowerdir=lower,upperdir=upper,workdir=work,userxattr"
            script = f"cd {shlex.quote(folder)} && mount -t overlay tiltyard -o {options} merged"
            status, said = _said("unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", script)
            if status == 0:
                Path(folder, "work", "work").chmod(0o700)  # closed by the kernel, even to us
    except OSError as error:
        return fail("overlay", f"nothing can be written at {place}: {error.strerror}", "set TILTYARD_STATE_DIR")
    if status == 0:
        return ok("overlay", "can be mounted without root")
    fix = "a kernel of 5.11 or newer that allows overlay in user namespaces, and a file system with user xattrs; or run as root"
    return fail("overlay", said[:200], fix)


def _filter() -> Check:
    try:
        callfilter.library()
    except Misconfigured as error:
        return fail("system call filter", error.message, "apt-get install libseccomp2; pip install 'tiltyard[local]'")
    return ok("system call filter", "libseccomp compiles it")


def limits(found: Hierarchies, *, rooted: bool) -> list[Check]:
    """Pure."""
    if not rooted:
        detail = "without root: no limit of processor time; memory is limited for each process, not for the box; disk is watched"
        return [warn("limits", detail, "run as root")]
    if not found.missing:
        where = "version 2" if found.unified else "version 1"
        return [ok("limits", f"cgroups, {where}: {', '.join(CONTROLLERS)}")]
    lost = "; ".join(LOST[name] for name in found.missing)
    return [
        warn(
            "limits", f"no cgroup of ours for: {lost}", "run where cgroups can be made: not in a container without them"
        )
    ]


def _shown(settings: LocalSettings) -> Check:
    try:
        check_shown(settings.paths, settings.state_dir)
    except Misconfigured as error:
        return fail("shown folders", error.message, "mend TILTYARD_LOCAL_PATHS")
    names = ["/usr", *map(str, settings.paths)]
    pytest = Path("/usr/lib/python3/dist-packages/pytest").is_dir()
    hint = "" if pytest else "; python3-pytest is not installed for /usr/bin/python3, which the tests grader needs"
    if hint:
        return warn("shown folders", ", ".join(names) + hint, "apt-get install python3-pytest")
    return ok("shown folders", f"{', '.join(names)} and a few files of /etc, read-only")
