"""The filter follows from upstream's facts and our rules, call by call; nothing is kept or dropped without a named reason."""

import json
import subprocess
import sys

import pytest

from orchestrator.backends.seccomp import rules
from orchestrator.backends.seccomp.generate import Upstream, decide, generate, render, upstream
from orchestrator.backends.seccomp.pinned import Profile, pinned, too_much
from orchestrator.errors import Misconfigured

FACTS = upstream()
FOUND = generate(FACTS)


def every_call(facts: Upstream) -> set[str]:
    """Each name that upstream mentions, whatever the condition."""
    texts = [
        facts.always,
        *facts.by_kernel.values(),
        *facts.by_capability.values(),
        *(each.names for each in facts.by_architecture),
    ]
    named = [*(each.name for each in facts.by_argument), *(each.name for each in facts.by_errno)]
    return {call for text in texts for call in text.split()} | set(named)


def allowed(profile: Profile, *, always: bool = False) -> set[str]:
    entries = [entry for entry in profile.syscalls if entry.action == "SCMP_ACT_ALLOW" and not (always and entry.args)]
    return {name for entry in entries for name in entry.names}


def changed(**update: object) -> Upstream:
    return FACTS.model_copy(update=update)


def test_the_pinned_file_is_what_the_rules_make_of_upstream() -> None:
    """Byte for byte. To follow upstream or change a rule: `python -m orchestrator.backends.seccomp --write`."""
    assert pinned().read_text(encoding="utf-8") == render(FOUND)


def test_the_pinned_file_reads_back_as_the_same_profile() -> None:
    assert Profile.model_validate_json(render(FOUND)) == FOUND
    assert "SCMP_ACT_ALLOW" in {entry["action"] for entry in json.loads(render(FOUND))["syscalls"]}


def test_upstream_is_the_size_it_is() -> None:
    """A slip in the facts would show here: 361 calls without a condition, as counted in upstream's own file."""
    assert len(FACTS.always.split()) == len(set(FACTS.always.split())) == 361
    assert len(every_call(FACTS)) == 426
    assert len(FACTS.commit) == 40


def test_every_call_of_upstream_is_decided_by_a_named_rule() -> None:
    decisions = decide(FACTS)
    assert set(decisions) == every_call(FACTS)
    assert all(decision.rule.name and decision.rule.reason for decision in decisions.values())
    assert {call for call, decision in decisions.items() if decision.kept} == allowed(FOUND)


def test_no_rule_is_idle_and_no_name_in_one_is_unknown_to_upstream() -> None:
    used = {decision.rule.name for decision in decide(FACTS).values()}
    every = (
        *rules.DROPPED,
        *rules.NARROWED,
        rules.KEPT,
        rules.SINCE_KERNEL,
        rules.CAPABILITY,
        rules.ARCHITECTURE,
        rules.UNHEARD_OF,
    )
    assert used == {rule.name for rule in every}
    for rule in (*rules.DROPPED, *rules.NARROWED):
        assert rule.calls <= every_call(FACTS), rule.name


def test_a_call_that_upstream_adds_is_let_through_and_one_that_it_takes_back_is_not() -> None:
    """Following upstream is a change of facts, not of rules."""
    assert "brand_new" in allowed(generate(changed(always=FACTS.always + " brand_new")))
    assert "tee" not in allowed(generate(changed(always=FACTS.always.replace(" tee ", " "))))


def test_what_asks_for_a_capability_is_refused_unless_upstream_has_it_without_one_too() -> None:
    dropped = {call for call, decision in decide(FACTS).items() if decision.rule is rules.CAPABILITY}
    assert {"bpf", "mount", "setns", "unshare", "pidfd_getfd", "kcmp", "mbind", "open_by_handle_at"} <= dropped
    assert {"ptrace", "process_vm_readv", "clone"} <= allowed(FOUND) - dropped


def test_what_needs_a_younger_kernel_than_ours_is_refused() -> None:
    assert "ptrace" in allowed(FOUND)
    assert "ptrace" not in allowed(generate(changed(by_kernel={"7.9": "ptrace"})))


def test_a_socket_family_that_upstream_gives_up_stops_the_generator() -> None:
    fewer = tuple(
        each.model_copy(update={"below": 10}) if each.name == "socket" else each for each in FACTS.by_argument
    )
    with pytest.raises(Misconfigured, match="family 10"):
        generate(changed(by_argument=fewer))


def test_a_personality_that_upstream_gives_up_is_gone_here_too() -> None:
    fewer = tuple(
        each.model_copy(update={"equal": (0,)}) if each.name == "personality" else each for each in FACTS.by_argument
    )
    entries = [entry for entry in generate(changed(by_argument=fewer)).syscalls if entry.names == ("personality",)]
    assert [entry.args[0].value for entry in entries] == [0]


def test_the_generated_filter_lets_nothing_through_that_no_box_may_do() -> None:
    assert too_much(FOUND) == []
    assert not allowed(FOUND) & rules.NEVER
    assert not allowed(FOUND, always=True) & {"socket", "socketpair", "clone", "personality", "ioctl", "clone3"}


def test_the_command_says_whether_the_pinned_file_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.backends.seccomp", "--explain"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("tiltyard.json is what the rules make of moby/profiles")
    assert len(lines) == len(every_call(FACTS)) + 1
