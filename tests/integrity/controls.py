"""Controls C1 to C35: what each is, by which setting it holds, and what is evidence for it. Source of the table in docs/security.md.

Most evidence is found, not listed: checks of the conformance suite that name the control (`proves=`), tests whose name holds it (`test_C3_..`), and
mutants of `weaken` that name it. What is listed here is the rest.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.conformance.catalogue import proving
from orchestrator.conformance.gaps import GAPS
from tests.integrity.weaken import MUTANTS

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
SUITE_MUTANTS = "tests/conformance/test_suite.py::test_broken_promise_is_seen"
OUTSIDE = "tests/integrity/test_outside.py::test_agent_command_and_background_child_are_exactly_as_expected"
SENTRY = "tests/integrity/test_outside.py::test_what_the_machine_sees_of_a_gvisor_box_is_its_kernel_alone"
PROBE_MUTANTS = "tests/backends/docker/test_mutants.py::test_a_weakened_request_turns_its_control_red"
WITHOUT_ROOT = "tests/backends/local/test_without_root.py::test_the_suite_passes_but_for_known_gaps_and_leaves_nothing"
"""A box without a cap on its disk and without uids of its own: the suite's checks must fail there, or its strict gaps fail the run."""
SUBJECTS = {
    "docker": "docker, runc",
    "docker-runsc": "docker, gVisor",
    "local": "local",
    "local-without-root": "local, no root",
    "kubernetes": "pods",
    "kubernetes-gvisor": "pods, gVisor",
    "kubernetes-restricted": "pods, restricted",
    "fake": "fake",
}
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "docker": (
        "tests/backends/docker/",
        "tests/backends/seccomp/",
        "tests/egress/",
        "tests/integrity/",
        "tests/e2e/",
        "tests/cli/",
        "tests/agent/",
    ),
    "local": ("tests/backends/local/",),
    "kubernetes": ("tests/kubernetes/",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """`tests` and `mutants` are pytest nodes beyond those that are found. `absent`: why there is no evidence. `no_mutant`: why there is no mutant.

    `unless`: subject -> why the control does not hold there, or holds otherwise, beyond the suite's own gaps.
    """

    id: str
    title: str
    setting: str
    tests: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()
    absent: str = ""
    no_mutant: str = ""
    unless: Mapping[str, str] | None = None


def _c(number: int, title: str, setting: str, **more: object) -> Control:
    return Control(id=f"C{number}", title=title, setting=setting, **more)  # type: ignore[arg-type]


CONTROLS: Sequence[Control] = (
    _c(1, "capabilities", "all dropped; the agent keeps KILL, SETGID, SETUID, commands none", tests=(OUTSIDE, SENTRY)),
    _c(
        2,
        "no new privileges",
        "`no-new-privileges`, and the agent sets it on itself",
        tests=(OUTSIDE,),
        mutants=(PROBE_MUTANTS,),
    ),
    _c(
        3,
        "system call filter",
        "`orchestrator/backends/seccomp/tiltyard.json`, generated",
        tests=(
            OUTSIDE,
            "tests/backends/seccomp/test_compiled.py::test_every_call_gets_the_verdict_that_its_rule_says",
            "tests/backends/seccomp/test_compiled.py::test_calls_of_another_architecture_are_killed",
            "tests/backends/seccomp/test_generate.py::test_the_pinned_file_is_what_the_rules_make_of_upstream",
            "tests/backends/seccomp/test_generate.py::test_every_call_of_upstream_is_decided_by_a_named_rule",
            "tests/backends/seccomp/test_pinned.py::test_broken_or_too_wide_filter_is_refused",
        ),
    ),
    _c(
        4,
        "AF_ALG and io_uring",
        "the same filter: socket families are an allow-list",
        tests=("tests/backends/seccomp/test_compiled.py::test_sockets",),
    ),
    _c(
        5,
        "a uid of its own",
        "a block of 64 uids per box, id-mapped; no user namespace on runc",
        tests=(OUTSIDE, "tests/integrity/test_outside.py::test_two_boxes_and_the_machine_share_no_namespace"),
        mutants=(WITHOUT_ROOT,),
    ),
    _c(6, "read-only root", "`ReadonlyRootfs`; workspace, home, /tmp, /dev/shm are writable", tests=(OUTSIDE,)),
    _c(7, "masks of /proc and /sys", "`MaskedPaths`, `ReadonlyPaths`, the engines' list of 2026", tests=(OUTSIDE,)),
    _c(
        8,
        "patched runtime",
        "the server refuses an old runc without `--accept-old-runc`",
        no_mutant="its tests hold old and new versions side by side",
    ),
    _c(9, "no host sockets, devices, folders", "five mounts, default devices", tests=(OUTSIDE,)),
    _c(
        10,
        "namespaces",
        "own pid, ipc, uts, net, mnt, cgroup; user and time are the machine's on runc",
        tests=(OUTSIDE, SENTRY, "tests/integrity/test_outside.py::test_two_boxes_and_the_machine_share_no_namespace"),
    ),
    _c(
        11,
        "memory",
        "`Memory` = `MemorySwap` = the task's",
        tests=(
            OUTSIDE,
            "tests/e2e/test_neighbour.py::test_a_neighbour_and_the_machine_bear_a_box_that_abuses_everything",
        ),
    ),
    _c(12, "processes", "`PidsLimit`, and the uid's process limit below it", tests=(OUTSIDE,)),
    _c(13, "processor", "`CpuQuota` in periods of 10 ms", tests=(OUTSIDE,)),
    _c(
        14,
        "limits under gVisor are enforced",
        "runtime arguments that would switch them off are refused",
        no_mutant="its tests hold a runtime with and without such arguments",
        unless={"docker": "about gVisor"},
    ),
    _c(
        15,
        "disk bytes and inodes",
        "a loop ext4 per box; without root it is watched",
        tests=("tests/hosts/test_disk.py::test_a_start_on_too_little_disk_is_refused_with_the_ways_out",),
        mutants=(WITHOUT_ROOT,),
    ),
    _c(16, "floods of output", "no engine log; streams are cut as they come"),
    _c(17, "caps of output", "`output_limit_bytes` per stream, files up to 1 MiB a read", mutants=(SUITE_MUTANTS,)),
    _c(18, "time-outs end whole trees", "tag, sweep, then all commands of the box", mutants=(SUITE_MUTANTS,)),
    _c(19, "rlimits", "nofile, fsize, nproc, core = 0", tests=(OUTSIDE,)),
    _c(
        20,
        "network",
        "none; or a list of names through one proxy",
        tests=("tests/egress/test_reach.py::test_the_firewall_holds_where_the_proxy_would_err",),
    ),
    _c(
        21,
        "limits of network policies",
        "`k8s/base/network.yaml`: nothing in or out but hosts to agents",
        tests=("tests/kubernetes/test_escapes.py::test_no_address_leads_out",),
    ),
    _c(
        22,
        "no cluster identity",
        "no token, no service links",
        tests=(
            "tests/kubernetes/test_escapes.py::test_nothing_of_the_cluster_lies_in_a_box",
            "tests/kubernetes/test_pods.py::test_no_secret_and_no_way_to_the_cluster_is_in_it",
        ),
        no_mutant="the manifest is held against a golden one, field by field",
    ),
    _c(
        23,
        "no host environment or secrets",
        "an explicit environment; nothing of the server's",
        tests=(OUTSIDE, "tests/integrity/test_canaries.py::test_C23_no_canary_of_the_server_is_anywhere_in_the_box"),
        mutants=("tests/integrity/test_canaries.py::test_C23_a_canary_that_leaks_is_found",),
    ),
    _c(
        24,
        "reserved labels",
        "labels that begin with `tiltyard.` are refused",
        no_mutant="its test holds refused and accepted labels side by side",
    ),
    _c(25, "image by id, never pulled", "the engine is asked for an id that it has"),
    _c(
        26,
        "fail closed",
        "runtime, its program and the kernel seen from the first box are compared with its name",
    ),
    _c(
        27,
        "files by descriptor, as the command's uid",
        "an own walk, `O_NOFOLLOW` at each step",
        mutants=(SUITE_MUTANTS,),
    ),
    _c(28, "hostile archives", "own reader: regular files and folders, capped", mutants=(SUITE_MUTANTS,)),
    _c(
        29,
        "terminal escapes",
        "what strangers wrote is shown as letters",
        tests=(
            "tests/tools/test_texts.py::test_any_bytes_become_printable_text",
            "tests/integrity/test_hostile_terminals.py::test_no_bytes_become_commands",
        ),
        mutants=("tests/integrity/test_hostile_terminals.py::test_the_look_sees_what_the_corpus_holds",),
    ),
    _c(
        30,
        "terminals",
        "no terminal; TIOCSTI is refused by the filter, also on terminals of a box's own",
        tests=(OUTSIDE, "tests/backends/seccomp/test_compiled.py::test_namespaces_personalities_and_terminals"),
    ),
    _c(
        31,
        "bubblewrap",
        "docs/local.md: own namespaces, no network, cleared environment, private places hidden",
        tests=tuple(
            f"tests/backends/local/test_hostile.py::test_{name}"
            for name in (
                "no_environment_or_command_line_tells_of_us",
                "an_open_file_of_ours_reaches_no_box",
                "no_socket_of_the_machine_answers",
                "private_places_are_not_there",
                "a_setuid_program_raises_nobody",
                "not_even_the_trusted_principal_can_turn_the_kernels_switches",
                "the_machines_files_cannot_be_changed_by_the_trusted_principal",
            )
        ),
        mutants=("tests/backends/local/test_hostile.py::test_a_weakened_box_is_seen",),
        unless={
            "docker": "about the local backend",
            "docker-runsc": "about the local backend",
            "fake": "about the local backend",
        },
    ),
    _c(
        32,
        "the host runs nothing of a repository",
        "plain git without hooks, filters, configuration of the repository's",
        tests=(
            "tests/repos/test_hostile.py::test_building_from_a_hostile_repository_runs_nothing_of_it",
            "tests/repos/test_hostile.py::test_what_set_up_does_to_git_is_dropped",
        ),
        mutants=("tests/repos/test_hostile.py::test_the_canaries_can_sing",),
    ),
    _c(33, "kill works on a hostile init", "the agent is PID 1 and reaps; the engine kills", mutants=(SUITE_MUTANTS,)),
    _c(
        34,
        "clock",
        "the clock cannot be set; deadlines are monotonic",
        tests=("tests/hosts/test_sweeper.py::test_the_wall_clock_decides_no_expiry_at_adoption",),
        no_mutant="setting the clock needs a capability that this suite's own machine may lack",
    ),
    _c(35, "side channels", "", absent="see below: one tenant per machine where tenants distrust each other"),
)


@cache
def nodes() -> Mapping[str, str]:
    """Every test there is: pytest node (without parameters) -> its name."""
    return dict(sorted(_nodes()))


def _nodes() -> Iterator[tuple[str, str]]:
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT)}::{node.name}", node.name


def named_in(name: str) -> set[str]:
    """Controls that a test's name begins with: `test_C1_C2_commands_have_none` is evidence for two."""
    found = re.match(r"test_((?:C\d+_)+)", name)
    return set(found[1].rstrip("_").split("_")) if found else set()


def evidence_of(control: Control) -> Sequence[str]:
    found = [node for node, name in nodes().items() if control.id in named_in(name) and "mutant" not in node]
    return sorted({*found, *control.tests} - {*control.mutants})


def on(subject: str, node: str) -> bool:
    """Whether a test is evidence for one subject: by its file, and by the word gvisor in file or name."""
    if subject == "docker-runsc" or "gvisor" in node:
        return subject == "docker-runsc" and "gvisor" in node
    return node.startswith(FOLDERS.get(subject, ()))


def checks_of(control: Control) -> Sequence[str]:
    return [check.id for check in proving(control.id)]


def mutants_of(control: Control) -> Sequence[str]:
    """Settings of `weaken`, by name, then tests that weaken otherwise."""
    found = [node for node, name in nodes().items() if control.id in named_in(name) and "mutant" in node]
    return [*(mutant.name for mutant in MUTANTS if control.id in mutant.controls), *sorted({*found, *control.mutants})]


def gaps_of(control: Control, subject: str) -> Mapping[str, str]:
    """Checks that fail on a subject, with the reason."""
    known = GAPS.get(subject, {})
    return {name: known[name] for name in checks_of(control) if name in known}
