"""What becomes of each call that the engines' default filter lets through: rules as data, each with its reason.

Boxes differ from a general container in three ways: nobody in a box holds a capability that a filter asks about (commands hold none, the agent
only SETUID, SETGID and KILL), no 32-bit program runs there, and no network but the loopback is there to speak to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

EPERM = 1
ENOSYS = 38
EPROTONOSUPPORT = 93

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE = 0
IPPROTO_UDP = 17
TIOCSTI = 0x5412
WHICH_PERSONALITY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`calls` is empty where the condition itself names them (a capability, a kernel, an argument)."""

    name: str
    reason: str
    calls: frozenset[str] = frozenset()


def _calls(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARCHITECTURES = ("amd64", "arm64")
"""The engines' names of those that boxes run on."""
NATIVE = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
"""The same in the filter's words. Without compatible ones beside them, a call through the 32-bit gate or with x32's bit is killed."""
LEAST_KERNEL = (4, 8)
"""Boxes need 5.19 for the sake of their workspaces; nothing older is served at all."""

KEPT = Rule(name="as-upstream", reason="the engines' default lets it through, and nothing speaks against it in a box")
SINCE_KERNEL = Rule(
    name="kernel",
    reason="let through by upstream from a kernel on that every machine of ours has; a command may debug its own",
)
CAPABILITY = Rule(name="capability", reason="upstream asks for a capability that nobody in a box has")
ARCHITECTURE = Rule(name="architecture", reason="belongs to an architecture that boxes do not run on")

DROPPED = (
    Rule(
        name="other-abi",
        reason="only 32-bit, x32 or foreign programs can make it; socketcall and ipc would also carry arguments past the filter",
        calls=_calls(
            """
            _llseek _newselect arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush chown32 clock_adjtime64 clock_getres_time64 clock_gettime64
            clock_nanosleep_time64 fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32
            getgroups32 getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 mq_timedreceive_time64 mq_timedsend_time64
            ppoll_time64 pselect6_time64 recv recvmmsg_time64 riscv_hwprobe rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 send
            sendfile64 set_tls setfsgid32 setfsuid32 setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sigprocmask sigreturn
            socketcall stat64 statfs64 sync_file_range2 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit
            utimensat_time64 waitpid
            """
        ),
    ),
    Rule(
        name="clock",
        reason="the clock is the machine's (C34); reading it has calls of its own",
        calls=_calls("adjtimex clock_adjtime"),
    ),
    Rule(
        name="handles",
        reason="half of open_by_handle_at, which has left many a container",
        calls=_calls("name_to_handle_at"),
    ),
    Rule(
        name="fanotify",
        reason="of no use without fanotify_init, which needs a capability",
        calls=_calls("fanotify_mark"),
    ),
    Rule(
        name="secret-memory",
        reason="memory that even the machine's own tools cannot look into",
        calls=_calls("memfd_secret"),
    ),
    Rule(
        name="segments",
        reason="16-bit segments, for emulators; a frequent source of kernel holes",
        calls=_calls("modify_ldt"),
    ),
    Rule(
        name="mount-listing",
        reason="young calls; /proc/self/mountinfo tells as much",
        calls=_calls("listmount statmount"),
    ),
)
"""Let through by upstream, refused here."""

SOCKETS = Rule(
    name="sockets",
    reason="unix, IPv4 and IPv6 up to UDP (no SCTP, DCCP, MPTCP or L2TP, whose modules would load on demand); no netlink: what lies in its sockets "
    "is counted nowhere, 8 MiB in each",
    calls=_calls("socket socketpair"),
)
PERSONALITY = Rule(
    name="personality", reason="plain Linux, or the question which one it is", calls=_calls("personality")
)
TERMINALS = Rule(name="terminals", reason="all but TIOCSTI, which types into a terminal (C30)", calls=_calls("ioctl"))
NAMESPACES = Rule(name="namespaces", reason="threads and children, but no new namespace", calls=_calls("clone"))
NARROWED = (SOCKETS, PERSONALITY, TERMINALS, NAMESPACES)
"""Let through for some arguments only."""

UNHEARD_OF = Rule(
    name="answers-enosys",
    reason="programs that hear ENOSYS take another way; clone3's flags lie in memory, where a filter cannot look",
    calls=_calls("clone3 io_uring_enter io_uring_register io_uring_setup listmount statmount userfaultfd"),
)
"""Refused with another word than EPERM; io_uring and userfaultfd are not let through by upstream either."""

FAMILIES: Mapping[int, int] = MappingProxyType({AF_INET: IPPROTO_UDP, AF_INET6: IPPROTO_UDP})
"""Address family -> highest protocol."""
PERSONALITIES = (0, WHICH_PERSONALITY)

NEVER = _calls(
    """
    acct add_key bpf chroot clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter
    io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl mount mount_setattr move_mount name_to_handle_at
    open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root quotactl reboot request_key setns settimeofday socketcall swapoff swapon
    syslog umount umount2 unshare userfaultfd
    """
)
"""What no filter of a box may let through, whoever wrote it: each is a way to the kernel, the machine or a neighbour."""
BY_ARGUMENT_ONLY = _calls("clone socket socketpair personality")
"""What must be narrowed by an argument."""
