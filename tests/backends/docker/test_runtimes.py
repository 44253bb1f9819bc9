"""What a runtime is judged by: its name, its program's words, the kernel of a box."""

from dataclasses import replace

import pytest

from orchestrator.agent.health import Kernel
from orchestrator.backends.checks import Check, Verdict
from orchestrator.backends.docker import runtimes
from orchestrator.backends.docker.facts import Registration
from orchestrator.backends.docker.runtimes import Kind, Program
from tests.backends.docker.test_doctor import GOOD

ARGUMENTS = ("--platform=systrap", "--host-uds=create", "--overlay2=none")
RUNSC = Registration(path="/usr/local/bin/runsc", arguments=ARGUMENTS)
GVISOR = Program(kind=Kind.GVISOR, version="release-20260224.0")
MACHINE = "Linux version 6.18.44 (gcc) #1 SMP"
SENTRY = Kernel(
    version="Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016", log="[    0.000000] Starting gVisor..."
)
SHARED = Kernel(version=MACHINE, log="")


def judged(name: str, program: Program, *, registered: Registration = RUNSC, accept: bool = False) -> Check:
    facts = replace(GOOD, runtimes={**GOOD.runtimes, name: registered})
    return runtimes.check_runtime(name, facts, program, accept_old_runc=accept)


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("1.2.7", False),
        ("1.2.8", True),
        ("1.2.10", True),
        ("1.3.2", False),
        ("1.3.3", True),
        ("1.4.0", True),
        ("1.5.1", True),
        ("2.0", True),
        ("1.1.15", False),
        ("v1.3.3+dev", True),
        ("nonsense", False),
    ],
)
def test_C8_the_runtimes_version_is_judged_by_line(version: str, fixed: bool) -> None:
    assert runtimes.runc_is_fixed(version) is fixed


@pytest.mark.parametrize("version", ["1.1.5+ds1-1+deb12u1", "1.3.2"])
def test_C8_an_old_runc_is_refused_until_it_is_accepted(version: str) -> None:
    program = Program(kind=Kind.RUNC, version=version)
    refused, accepted = judged("runc", program), judged("runc", program, accept=True)
    assert (refused.verdict, accepted.verdict) == (Verdict.FAIL, Verdict.WARN)
    for check in (refused, accepted):
        assert "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881" in check.detail
    assert "--accept-old-runc" in refused.fix
    assert judged("runc", Program(kind=Kind.RUNC, version="1.3.3")).verdict is Verdict.OK


@pytest.mark.parametrize("program", [Program(kind=Kind.OTHER, version=""), Program(kind=Kind.RUNC, version="main")])
def test_C8_a_runc_of_unknown_version_counts_as_old(program: Program) -> None:
    assert judged("runc", program).verdict is Verdict.FAIL
    assert judged("runc", program, accept=True).verdict is Verdict.WARN


def test_C8_another_program_for_the_shared_kernel_counts_as_old() -> None:
    assert judged("mine", Program(kind=Kind.OTHER, version="crun version 1.8.1")).verdict is Verdict.FAIL
    assert judged("mine", Program(kind=Kind.RUNC, version="1.4.0")).verdict is Verdict.OK


def test_C26_a_runtime_that_the_engine_lacks_is_refused_with_what_it_has() -> None:
    check = runtimes.check_runtime("runsc", GOOD, Program(kind=Kind.OTHER, version=""), accept_old_runc=True)
    assert check.verdict is Verdict.FAIL
    assert "io.containerd.runc.v2, runc" in check.detail
    assert "sandbox_images/gvisor" in check.fix


def test_C26_a_gvisor_as_it_must_be_is_taken() -> None:
    check = judged("runsc", GVISOR)
    assert check.verdict is Verdict.OK
    assert "platform systrap" in check.detail


@pytest.mark.parametrize("name", ["runsc", "runsc-fake", "gvisor"])
def test_C26_runc_under_gvisors_name_is_refused_whatever_is_accepted(name: str) -> None:
    check = judged(name, Program(kind=Kind.RUNC, version="1.4.0"), accept=True)
    assert check.verdict is Verdict.FAIL
    assert "is runc (1.4.0)" in check.detail


def test_C26_gvisor_under_runcs_name_is_refused() -> None:
    assert judged("runc", GVISOR, accept=True).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--host-uds=create"),
        (("--host-uds=create",), "--overlay2=none"),
        ((*ARGUMENTS, "--ignore-cgroups"), "--ignore-cgroups"),
        ((*ARGUMENTS, "-ignore-cgroups=true"), "--ignore-cgroups"),
        ((*ARGUMENTS, "--oci-seccomp"), "--oci-seccomp"),
        ((*ARGUMENTS, "--network=host"), "--network=host"),
    ],
)
def test_C14_arguments_under_which_nothing_would_hold_are_refused(arguments: tuple[str, ...], word: str) -> None:
    check = judged("runsc", GVISOR, registered=replace(RUNSC, arguments=arguments))
    assert check.verdict is Verdict.FAIL
    assert word in check.detail


def test_arguments_that_are_off_do_no_harm() -> None:
    harmless = (*ARGUMENTS, "--ignore-cgroups=false", "--oci-seccomp=false", "--debug")
    assert judged("runsc", GVISOR, registered=replace(RUNSC, arguments=harmless)).verdict is Verdict.OK


def test_C14_gvisor_as_a_containerd_shim_is_refused() -> None:
    assert judged("runsc", GVISOR, registered=Registration(path="")).verdict is Verdict.FAIL


@pytest.mark.parametrize("version", ["0.0~20221219.0", "release-20230101.0", "", "VERSION_MISSING"])
def test_C8_a_gvisor_that_is_too_old_or_silent_is_refused(version: str) -> None:
    assert judged("runsc", Program(kind=Kind.GVISOR, version=version)).verdict is Verdict.FAIL


def test_kata_is_refused_with_the_reason() -> None:
    check = judged("kata-qemu", Program(kind=Kind.KATA, version="3.2.0"))
    assert check.verdict is Verdict.FAIL
    assert "unix sockets" in check.detail


def test_kata_is_refused_with_the_reason_also_where_the_engine_has_none() -> None:
    """Else an operator would install it first, to be refused then."""
    check = runtimes.check_runtime("kata", GOOD, Program(kind=Kind.OTHER, version=""), accept_old_runc=True)
    assert check.verdict is Verdict.FAIL
    assert "unix sockets" in check.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runc version 1.1.5+ds1-1+deb12u1\ncommit: x\n", Program(kind=Kind.RUNC, version="1.1.5+ds1-1+deb12u1")),
        ("runsc version release-20260224\nspec: 1.1.0-rc.1\n", Program(kind=Kind.GVISOR, version="release-20260224")),
        ("kata-runtime  : 3.2.0\n", Program(kind=Kind.KATA, version="3.2.0")),
        ("crun version 1.8.1\ncommit: y\n", Program(kind=Kind.OTHER, version="crun version 1.8.1")),
        ("", Program(kind=Kind.OTHER, version="")),
    ],
)
def test_what_programs_say_is_read(text: str, expected: Program) -> None:
    assert runtimes.read_program(text) == expected


@pytest.mark.parametrize(
    ("kind", "kernel", "right"),
    [
        (Kind.GVISOR, SENTRY, True),
        (Kind.GVISOR, SHARED, False),
        (Kind.GVISOR, Kernel(version=SENTRY.version, log=""), False),
        (Kind.GVISOR, Kernel(version=MACHINE, log=SENTRY.log), False),
        (Kind.RUNC, SHARED, True),
        (Kind.RUNC, SENTRY, False),
        (Kind.RUNC, Kernel(version="", log=""), False),
    ],
)
def test_C26_the_kernel_of_a_box_is_held_against_the_runtime(kind: Kind, kernel: Kernel, right: bool) -> None:
    assert (runtimes.kernel_mismatch(kind, MACHINE, kernel) == "") is right
