"""What the engine's runtimes are: by their names, by what their programs say of themselves, and by the kernel that a box under one tells of.

Three looks, since each can be wrong alone: a name is what an operator typed, a program's version what a wrapper may echo, a kernel what really runs.
"""

import asyncio
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.agent.health import Kernel
from orchestrator.backends.checks import Check, fail, ok, warn
from orchestrator.backends.docker.facts import EngineFacts, Registration

RUNC_FIXED = ((1, 2, 8), (1, 3, 3), (1, 4, 0))
"""First runc of each line without CVE-2025-31133, -52565 and -52881 (races of masked paths and of writes below /proc)."""
RUNC_HOLES = "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881"
GVISOR_OLDEST = 20230801
"""The date in gVisor's release. The platform systrap became the default in the middle of 2023; tried here: 20260224."""
GVISOR_LOG = "Starting gVisor"
"""How the kernel log of every gVisor begins; a kernel shared with the machine refuses its log, and has another one."""
ENGINE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where an engine that was started by the system looks for programs without a folder in their name."""
VERSION_S = 10.0
INSTALL = "sandbox_images/gvisor installs and registers it; docs/runtimes.md"


class Kind(StrEnum):
    RUNC = "runc"
    GVISOR = "gVisor"
    KATA = "Kata"
    OTHER = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a runtime's program says of itself; `version` is empty where it says nothing."""

    kind: Kind
    version: str


def named_kind(name: str) -> Kind:
    """What an operator means by a runtime's name; OTHER: nothing in particular."""
    lower = name.lower()
    if "kata" in lower:
        return Kind.KATA
    if "runsc" in lower or "gvisor" in lower:
        return Kind.GVISOR
    return Kind.RUNC if lower == "runc" else Kind.OTHER


def read_program(text: str) -> Program:
    """From the output of `PROGRAM --version`."""
    found = re.match(r"(runc|runsc|kata-runtime)\s+(?:version\s+|:\s*)?(\S+)", text.strip())
    if not found:
        return Program(kind=Kind.OTHER, version=text.strip().splitlines()[0][:80] if text.strip() else "")
    kinds = {"runc": Kind.RUNC, "runsc": Kind.GVISOR, "kata-runtime": Kind.KATA}
    return Program(kind=kinds[found[1]], version=found[2])


def numbers(version: str) -> tuple[int, ...]:
    """The leading dotted numbers of a version: "1.1.5+ds1-1" -> (1, 1, 5); () where there are none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def runc_is_fixed(version: str) -> bool:
    """Whether this line of runc carries the fixes of November 2025. A distribution may have ported them to an older one: it cannot be seen."""
    found = numbers(version)
    if not found:
        return False
    for fixed in RUNC_FIXED:
        if found[:2] == fixed[:2]:
            return found >= fixed
    return found > RUNC_FIXED[-1]


def gvisor_release(version: str) -> int:
    """The date of "release-20260224.0" as a number; 0 where there is none."""
    found = re.search(r"(?:^|[-_~])(\d{8})(?:\D|$)", version)
    return int(found[1]) if found else 0


def check_runtime(name: str, facts: EngineFacts, program: Program, *, accept_old_runc: bool) -> Check:
    """Whether boxes may be made under the engine's runtime `name` (C8, C26), `program` being what it is registered to run.

    FAIL: they are refused. WARN: they are made although something is known to be open.
    """
    meant = named_kind(name)
    if meant is Kind.KATA or program.kind is Kind.KATA:
        return fail(
            "runtime",
            f"{name!r} is Kata: its guests' unix sockets, by which boxes are spoken to, cannot be reached from this machine",
            "take gVisor: --runtime runsc",
        )
    registered = facts.runtimes.get(name)
    if registered is None:
        known = ", ".join(sorted(facts.runtimes)) or "none"
        hint = INSTALL if meant is Kind.GVISOR else "add it to /etc/docker/daemon.json, or set another"
        return fail("runtime", f"the engine has no runtime {name!r} (it has: {known})", hint)
    if meant is not Kind.OTHER and program.version and program.kind is not meant:
        return fail(
            "runtime",
            f"{name!r} should be {meant}, but the program registered under that name is {program.kind} ({program.version})",
            "mend its entry in /etc/docker/daemon.json and reload the engine",
        )
    if Kind.GVISOR in (meant, program.kind):
        return _check_gvisor(name, registered, program)
    return _check_shared_kernel(name, program, accept_old_runc)


def _check_gvisor(name: str, registered: Registration, program: Program) -> Check:
    if not registered.path:
        return fail(
            "runtime",
            f"{name!r} is registered as a containerd shim, under which limits are known not to hold",
            f"register it by its path; {INSTALL}",
        )
    release = gvisor_release(program.version)
    if release < GVISOR_OLDEST:
        found = program.version or "it does not start here"
        return fail("runtime", f"{name!r} is no gVisor of {GVISOR_OLDEST} or newer ({found})", INSTALL)
    wrong = gvisor_mistake(registered.arguments)
    if wrong:
        return fail(
            "runtime", f"{name!r}: {wrong}", "mend runtimeArgs in /etc/docker/daemon.json and reload the engine"
        )
    platform = runtime_flags(registered.arguments).get("platform", "default")
    return ok("runtime", f"{name}: gVisor {program.version}, platform {platform}; a kernel of its own per box")


def gvisor_mistake(arguments: tuple[str, ...]) -> str:
    """What in a registration's arguments keeps boxes from holding, or from working; empty: nothing."""
    flags = runtime_flags(arguments)
    if flags.get("ignore-cgroups", "false") not in ("false", "0"):
        return "with --ignore-cgroups no limit holds: take it out"
    if flags.get("host-uds", "none") not in ("create", "all"):
        return "without --host-uds=create an agent cannot make its socket: add it"
    if flags.get("overlay2", "root:self") != "none":
        return "without --overlay2=none what set-up commands install would be lost: add it"
    if flags.get("oci-seccomp", "false") not in ("false", "0"):
        return "gVisor ignores which error a filter asks for, so that with --oci-seccomp programs cannot start threads: take it out"
    if flags.get("network", "sandbox") == "host":
        return "with --network=host boxes share the machine's network: take it out"
    return ""


def runtime_flags(arguments: tuple[str, ...]) -> Mapping[str, str]:
    """Go's flags as a table: "--a=b", "-a=b", and "--a", which is "true"."""
    found = {}
    for argument in arguments:
        name, given, value = argument.lstrip("-").partition("=")
        found[name] = value if given else "true"
    return found


def _check_shared_kernel(name: str, program: Program, accepted: bool) -> Check:
    """runc, or something that is not known to be better than an old one."""
    label = f"{name}: " if name != "runc" else ""
    if program.kind is Kind.RUNC and runc_is_fixed(program.version):
        return ok("runtime", f"{label}runc {program.version}")
    if program.kind is Kind.RUNC:
        what = f"{label}runc {program.version} predates the fixes of {RUNC_HOLES}, unless your distribution ported them"
    else:
        what = f"{label}what runs is not known to have the fixes of {RUNC_HOLES} ({program.version or 'of unknown version'})"
    fix = "install runc 1.2.8, 1.3.3, 1.4.0 or newer, or take gVisor: --runtime runsc"
    if accepted:
        return warn("runtime", f"{what}; accepted: a box may break out to this machine", fix)
    return fail("runtime", f"{what}; boxes hold code that nobody trusts", f"{fix}; or accept it with --accept-old-runc")


def kernel_mismatch(expected: Kind, machine: str, found: Kernel) -> str:
    """Why a box's kernel is not what its runtime should give it; empty when it is. `machine` is this machine's /proc/version, one line (C26)."""
    is_gvisor = GVISOR_LOG in found.log and found.version != machine
    if expected is Kind.GVISOR and not is_gvisor:
        return f"it runs on {found.version!r}, which is no gVisor"
    if expected is not Kind.GVISOR and found.version != machine:
        return f"it runs on {found.version!r}, which is not this machine's kernel"
    return ""


def expected_kind(name: str, program: Program) -> Kind:
    """What a box under the runtime must turn out to run on."""
    return Kind.GVISOR if Kind.GVISOR in (named_kind(name), program.kind) else Kind.RUNC


async def look_up(name: str, facts: EngineFacts) -> Program:
    """What the program registered under `name` says. Its own word for runc where it cannot be started from here is the engine's."""
    registered = facts.runtimes.get(name)
    path = shutil.which(registered.path, path=ENGINE_PATH) if registered and registered.path else None
    text = await _version_of(path) if path else ""
    if not text and name == "runc" and facts.runc_version:
        return Program(kind=Kind.RUNC, version=facts.runc_version)
    return read_program(text)


async def _version_of(path: str) -> str:
    """Output of `path --version`; empty when it does not start, fails, or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(VERSION_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return output.decode("utf-8", "replace") if process.returncode == 0 else ""
