"""The pinned system call filter as the program that the kernel runs, made by libseccomp for this machine's architecture."""

import errno
import hashlib
import os
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

from orchestrator.backends.seccomp import profile
from orchestrator.backends.seccomp.pinned import Argument, Entry, Profile
from orchestrator.errors import Misconfigured

NEWEST_CALL = 512
"""Numbers up to here that this machine's libseccomp has no name for answer ENOSYS: they are calls of newer kernels, and programs that hear it
take the older way. Every architecture of ours has counted up from 424 alike since kernel 5.1."""
FIRST_SHARED_CALL = 424


def library() -> ModuleType:
    """Raises Misconfigured where pyseccomp or libseccomp is missing: a box without a filter is never made."""
    try:
        return import_module("pyseccomp")
    except (ImportError, OSError, RuntimeError) as error:
        raise Misconfigured(
            "the local backend needs libseccomp to close system calls: apt-get install libseccomp2, pip install 'tiltyard[local]'"
        ) from error


def compiled(text: str) -> bytes:
    """`text` (the filter in the engines' form) as BPF for this architecture. Raises Misconfigured, OSError."""
    lib = library()
    found = Profile.model_validate_json(text)
    rules = lib.SyscallFilter(lib.ERRNO(found.defaultErrnoRet))
    for entry in found.syscalls:
        for name in entry.names:
            number = _number(lib, name)
            if number is not None:
                rules.add_rule(_action(lib, entry, found.defaultErrnoRet), number, *_compared(lib, entry.args))
    named = {_number(lib, name) for entry in found.syscalls for name in entry.names}
    for number in range(FIRST_SHARED_CALL, NEWEST_CALL):
        if number not in named and not _has_name(lib, number):
            rules.add_rule(lib.ERRNO(errno.ENOSYS), number)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _number(lib: ModuleType, name: str) -> int | None:
    """None: this machine's library does not know the call, so it stays refused; negative: another architecture's, of no use here."""
    number: int = lib.resolve_syscall(lib.Arch.NATIVE, name)
    return number if number >= 0 else None


def _has_name(lib: ModuleType, number: int) -> bool:
    try:
        return bool(lib.resolve_syscall(lib.Arch.NATIVE, number))
    except (OSError, ValueError):
        return False


def _action(lib: ModuleType, entry: Entry, default: int) -> int:
    if entry.action == "SCMP_ACT_ALLOW":
        return int(lib.ALLOW)
    return int(lib.ERRNO(default if entry.errnoRet is None else entry.errnoRet))


def _compared(lib: ModuleType, arguments: tuple[Argument, ...]) -> list[object]:
    compare = {
        "SCMP_CMP_EQ": lib.EQ,
        "SCMP_CMP_NE": lib.NE,
        "SCMP_CMP_LE": lib.LE,
        "SCMP_CMP_MASKED_EQ": lib.MASKED_EQ,
    }
    return [lib.Arg(argument.index, compare[argument.op], argument.value, argument.valueTwo) for argument in arguments]


def installed(folder: Path) -> Path:
    """`folder/<sha256>.bpf`, written once, whoever races. Blocks. Raises Misconfigured, OSError."""
    program = compiled(profile())
    target = folder / f"{hashlib.sha256(program).hexdigest()}.bpf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(program)
        file.flush()
        os.rename(file.name, target)
    return target
