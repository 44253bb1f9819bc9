"""What the library that engines use makes of a profile: the compiled filter, for any architecture, and its verdict on a call."""

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.backends.seccomp.pinned import Argument, Entry, Profile

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
KILL = 0x00000000
"""What a call of a foreign architecture gets: the calling thread dies of SIGSYS."""
X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
X32 = 0x40000000
OPS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def library() -> ctypes.CDLL:
    found = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_release.restype = None
    found.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    return found


def number(architecture: int, call: str) -> int:
    """Negative where the architecture has no such call, or the library is older than it."""
    return int(library().seccomp_syscall_resolve_name_arch(architecture, call.encode()))


def _action(entry: Entry) -> int:
    return ALLOW if entry.action == "SCMP_ACT_ALLOW" else ERRNO | (entry.errnoRet or 1)


def _compares(args: Sequence[Argument]) -> "ctypes.Array[_Compare]":
    return (_Compare * len(args))(*[_Compare(each.index, OPS[each.op], each.value, each.valueTwo) for each in args])


@dataclass(frozen=True)
class Filter:
    """A compiled filter: struct sock_filter as (code, jump if true, jump if false, constant)."""

    program: Sequence[tuple[int, int, int, int]]

    @classmethod
    def compile(cls, profile: Profile, architecture: int) -> "Filter":
        """As runc does: names that the library does not know are passed over."""
        lib = library()
        context = ctypes.c_void_p(lib.seccomp_init(ERRNO | profile.defaultErrnoRet))
        native = lib.seccomp_arch_native()
        if native & 0xFFFFFFFF != architecture:
            assert lib.seccomp_arch_add(context, ctypes.c_uint32(architecture)) == 0
            assert lib.seccomp_arch_remove(context, ctypes.c_uint32(native)) == 0
        for entry in profile.syscalls:
            for name in entry.names:
                known = int(lib.seccomp_syscall_resolve_name_arch(architecture, name.encode()))
                if known < 0:
                    continue
                here = lib.seccomp_syscall_resolve_name(name.encode())
                failed = lib.seccomp_rule_add_array(
                    context, _action(entry), here, len(entry.args), _compares(entry.args)
                )
                assert failed == 0, (name, os.strerror(-failed))
        return cls(_export(lib, context))

    def verdict(self, architecture: int, call: int, *args: int) -> int:
        """What the kernel would do; the little of BPF that libseccomp writes."""
        words = [*args, *[0] * (6 - len(args))]
        data = struct.pack("<iIQ6Q", call, architecture, 0, *words)
        accumulator = index = 0
        while True:
            code, true, false, k = self.program[index]
            index += 1
            if code == 0x20:  # ld [k]
                accumulator = struct.unpack_from("<I", data, k)[0]
            elif code == 0x54:  # and #k
                accumulator &= k
            elif code == 0x05:  # ja k
                index += k
            elif code == 0x06:  # ret #k
                return k
            else:
                index += true if JUMPS[code](accumulator, k) else false


JUMPS: dict[int, Callable[[int, int], bool]] = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}


def _export(lib: ctypes.CDLL, context: ctypes.c_void_p) -> list[tuple[int, int, int, int]]:
    descriptor = os.memfd_create("filter")
    try:
        assert lib.seccomp_export_bpf(context, descriptor) == 0
        os.lseek(descriptor, 0, os.SEEK_SET)
        code = os.read(descriptor, 1 << 20)
    finally:
        lib.seccomp_release(context)
        os.close(descriptor)
    return list(struct.iter_unpack("<HBBI", code))
