"""The filter as the engines' library compiles it, asked call by call, for both architectures that boxes run on."""

import errno
from collections.abc import Mapping

import pytest

from orchestrator.backends.seccomp import rules
from orchestrator.backends.seccomp.generate import decide, generate, upstream
from tests.backends.seccomp.libseccomp import AARCH64, ALLOW, ARM, ERRNO, I386, KILL, X32, X86_64, Filter, number
from tests.needs import needs

pytestmark = needs("libseccomp")

PROFILE = generate(upstream())
YOUNG_TEXT = """
cachestat fchmodat2 futex_requeue futex_wait futex_wake getxattrat listxattrat map_shadow_stack mseal removexattrat setxattrat uretprobe
"""
YOUNG = frozenset(YOUNG_TEXT.split())
"""Younger than Debian 12's library, which passes over them: programs then hear ENOSYS from runc, or EPERM."""
X86_ONLY_TEXT = """
access alarm arch_prctl chmod chown creat dup2 epoll_create epoll_ctl_old epoll_wait epoll_wait_old eventfd fork futimesat get_thread_area
getdents getpgrp getrlimit inotify_init lchown link lstat mkdir mknod open pause pipe poll readlink rename rmdir select set_thread_area setrlimit
signalfd stat symlink time unlink uretprobe utime utimes vfork
"""
X86_ONLY = frozenset(X86_ONLY_TEXT.split())


@pytest.fixture(scope="module")
def filters() -> Mapping[int, Filter]:
    return {architecture: Filter.compile(PROFILE, architecture) for architecture in (X86_64, AARCH64)}


def ask(filters: Mapping[int, Filter], architecture: int, call: str, *args: int) -> int:
    return filters[architecture].verdict(architecture, number(architecture, call), *args)


def refused(code: int = errno.EPERM) -> int:
    return ERRNO | code


@pytest.mark.parametrize("architecture", [X86_64, AARCH64])
def test_every_call_gets_the_verdict_that_its_rule_says(filters: Mapping[int, Filter], architecture: int) -> None:
    narrowed = {call for rule in rules.NARROWED for call in rule.calls}
    asked = 0
    for call, decision in decide(upstream()).items():
        if number(architecture, call) < 0 or call in narrowed:
            continue
        asked += 1
        code = errno.ENOSYS if call in rules.UNHEARD_OF.calls else errno.EPERM
        assert ask(filters, architecture, call) == (ALLOW if decision.kept else refused(code)), call
    assert asked > 250


def test_kept_calls_exist_and_dropped_foreign_ones_do_not() -> None:
    """What is dropped as foreign is no call of x86-64 or arm64, and what is kept is one: nobody is refused by mistake."""
    foreign = next(rule for rule in rules.DROPPED if rule.name == "other-abi").calls
    here = {call for call in foreign if number(X86_64, call) >= 0 or number(AARCH64, call) >= 0}
    assert here == set()
    kept = {call for call, decision in decide(upstream()).items() if decision.kept}
    assert {call for call in kept if number(X86_64, call) < 0} <= YOUNG
    assert {call for call in kept if number(AARCH64, call) < 0} <= YOUNG | X86_ONLY


@pytest.mark.parametrize("architecture", [X86_64, AARCH64])
def test_calls_that_no_box_may_make_are_refused_whatever_their_arguments(
    filters: Mapping[int, Filter], architecture: int
) -> None:
    for call in rules.NEVER:
        if number(architecture, call) >= 0:
            for args in ((), (1,), (2**64 - 1,) * 6, (0, 0x5412)):
                assert ask(filters, architecture, call, *args) != ALLOW, (call, args)


SOCKETS = {
    "unix": ((1, 1, 0), ALLOW),
    "tcp": ((2, 1, 0), ALLOW),
    "udp over IPv6": ((10, 2, 17), ALLOW),
    "netlink route": ((16, 3, 0), refused(errno.ENOSYS)),
    "netlink audit": ((16, 3, 9), refused(errno.EPROTONOSUPPORT)),
    "netlink crypto": ((16, 3, 21), refused(errno.EPROTONOSUPPORT)),
    "sctp": ((2, 1, 132), refused()),
    "mptcp": ((2, 1, 262), refused()),
    "packet": ((17, 3, 0), refused()),
    "bluetooth": ((31, 3, 0), refused()),
    "alg": ((38, 5, 0), refused()),
    "alg in the lower half": (((1 << 32) | 38, 5, 0), refused()),
    "vsock": ((40, 1, 0), refused()),
    "xdp": ((44, 3, 0), refused()),
    "a family to come": ((4711, 1, 0), refused()),
}


@pytest.mark.parametrize(("args", "verdict"), SOCKETS.values(), ids=SOCKETS)
@pytest.mark.parametrize("architecture", [X86_64, AARCH64])
def test_sockets(filters: Mapping[int, Filter], architecture: int, args: tuple[int, ...], verdict: int) -> None:
    assert ask(filters, architecture, "socket", *args) == verdict


@pytest.mark.parametrize("architecture", [X86_64, AARCH64])
def test_namespaces_personalities_and_terminals(filters: Mapping[int, Filter], architecture: int) -> None:
    thread, child, sigchld = 0x3D0F00, 0x01200011, 17
    for flags in (thread, child, sigchld):
        assert ask(filters, architecture, "clone", flags) == ALLOW
        for namespace in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
            assert ask(filters, architecture, "clone", flags | namespace) == refused()
    assert [ask(filters, architecture, "personality", value) for value in (0, 0xFFFFFFFF)] == [ALLOW, ALLOW]
    assert [ask(filters, architecture, "personality", value) for value in (8, 0x40000, 0x20000)] == [refused()] * 3
    for request in (0x5401, 0x5413, 0x5411, 0x541B, 0x80045430, 0xFFFFFFFF80045430, 0):
        assert ask(filters, architecture, "ioctl", 0, request) == ALLOW, hex(request)
    for request in (0x5412, 0x100005412, 0xFFFFFFFF00005412):
        assert ask(filters, architecture, "ioctl", 0, request) == refused(), hex(request)
    assert [ask(filters, architecture, "socketpair", family, 1) for family in (1, 2)] == [ALLOW, refused()]


def test_calls_of_another_architecture_are_killed(filters: Mapping[int, Filter]) -> None:
    """int 0x80 from a 64-bit program arrives as i386 (20 is its getpid); x32 is x86-64 with a high bit."""
    assert filters[X86_64].verdict(X86_64, number(X86_64, "getpid")) == ALLOW
    assert filters[X86_64].verdict(I386, 20) == KILL
    assert filters[X86_64].verdict(X86_64, X32 | number(X86_64, "getpid")) == KILL
    assert filters[AARCH64].verdict(ARM, 20) == KILL
    assert filters[AARCH64].verdict(X86_64, number(X86_64, "getpid")) == KILL
