"""The suite itself: it sees broken promises, trusts no negative check without its control, and keeps gaps strict."""

import asyncio

import pytest

from orchestrator.backends.fake import FakeBackend
from orchestrator.conformance import (
    GAPS,
    Check,
    Kind,
    Outcome,
    Report,
    Result,
    Suite,
    checks,
    line,
    proving,
    render,
    run,
    run_named,
    subject,
)
from orchestrator.conformance.model import Group, check_gaps
from orchestrator.conformance.named import suite_spec
from orchestrator.conformance.rig import Rig
from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxBackend
from tests.conformance.backends import docker
from tests.conformance.mutants import (
    ByName,
    Careless,
    Credulous,
    Folding,
    Forgetful,
    Immortal,
    Merciful,
    MutantBackend,
    Negligent,
    ShortSighted,
    Stuffed,
    Thawed,
    Unfenced,
)
from tests.needs import needs

pytestmark = pytest.mark.anyio

BY_ID = {check.id: check for check in checks()}


def test_there_are_many_checks_and_each_says_what_it_promises() -> None:
    assert len(checks()) >= 60
    assert len(BY_ID) == len(checks())
    assert all(check.sentence.endswith(".") for check in checks())


def test_every_negative_check_has_a_positive_control() -> None:
    negative = [check for check in checks() if check.kind is Kind.NEGATIVE]
    assert len(negative) >= 40
    assert {BY_ID[check.control or ""].kind for check in negative} == {Kind.POSITIVE}


def test_checks_carry_the_controls_that_they_are_evidence_for() -> None:
    assert "paths/swap-race-never-leaves-the-workspace" in {check.id for check in proving("C27")}
    with pytest.raises(Misconfigured, match="C36"):
        Group("group").positive(proves=("C36",))


def test_subjects_are_named_by_what_is_not_usual() -> None:
    assert subject("docker", runtime="runc") == "docker"
    assert subject("docker", runtime="runsc", image="tiltyard/busybox:bookworm") == "docker-runsc-busybox"
    assert subject("docker", image="docker.io/library/debian@sha256:0") == "docker-debian"


@pytest.mark.parametrize("name", sorted(GAPS))
def test_our_gaps_name_checks(name: str) -> None:
    check_gaps(checks(), GAPS[name])


@pytest.mark.parametrize("gaps", [{"exec/no-such-check": "reason"}, {"exec/output-comes-back": " "}])
def test_gaps_must_name_a_check_and_a_reason(gaps: dict[str, str]) -> None:
    with pytest.raises(Misconfigured):
        check_gaps(checks(), gaps)


def test_negative_check_is_no_control() -> None:
    negative = next(check for check in checks() if check.kind is Kind.NEGATIVE)
    with pytest.raises(Misconfigured):
        Group("group").negative(control=negative)


async def results(backend: SandboxBackend, *names: str, gaps: dict[str, str] | None = None) -> dict[str, Result]:
    """Results of some checks."""
    async with suite_spec() as spec:
        suite = Suite(backend, spec, gaps or {})
        try:
            return {name: await suite.run(BY_ID[name]) for name in names}
        finally:
            await suite.aclose()


MUTANTS = [
    (
        MutantBackend(Forgetful),
        ["same-id-replays-the-same-result", "same-id-joins-the-running-operation", "first-note-wins"],
    ),
    (MutantBackend(Forgetful), ["acknowledged-call-never-runs-again", "same-id-with-another-body-is-refused"]),
    (MutantBackend(Unfenced), ["older-epoch-is-fenced", "pending-calls-come-back-in-order"]),
    (MutantBackend(Thawed), ["frozen-box-runs-nothing-new", "frozen-box-still-answers"]),
]
KILLS = ["the-child", "a-daemon"]


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        *((backend, [f"protocol/{name}" for name in names]) for backend, names in MUTANTS),
        (MutantBackend(Merciful), [f"kill/time-out-kills-{what}" for what in KILLS]),
        (MutantBackend(Careless), ["exec/output-above-its-cap-is-cut", "exec/environment-holds-nothing-else"]),
        (MutantBackend(Careless), ["exec/cut-never-splits-a-character", "paths/final-symlink-is-refused"]),
        (MutantBackend(Careless), ["paths/symlink-on-the-way-is-refused", "paths/dot-dot-is-refused"]),
        (MutantBackend(ShortSighted), ["delta/same-size-and-time-hide-nothing", "delta/what-git-ignores-is-told"]),
        (MutantBackend(ShortSighted), ["paths/put-of-a-link-is-refused", "paths/put-that-climbs-is-refused"]),
        (MutantBackend(ShortSighted), ["archives/tricks-are-refused", "archives/a-torn-archive-is-refused"]),
        (MutantBackend(Careless), ["hostile/a-character-at-the-cap-is-whole-or-cut"]),
        (MutantBackend(Folding), ["hostile/names-that-look-alike-are-apart"]),
        (MutantBackend(Credulous), ["hostile/words-of-an-engine-are-only-words"]),
        (MutantBackend(Stuffed), ["hostile/a-full-box-can-still-be-graded"]),
        (Immortal(), ["life/destroyed-box-is-gone"]),
        (Negligent(), ["life/unknown-network-is-refused", "life/missed-deadline-is-a-failed-start"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else "mutant",
)
async def test_broken_promise_is_seen(backend: MutantBackend, names: list[str]) -> None:
    try:
        found = await results(backend, *names)
        sound = await results(MutantBackend(), *names)
    finally:
        await _end(backend)
    assert {name: result.outcome for name, result in found.items()} == dict.fromkeys(names, Outcome.FAILED)
    assert {name: result.outcome for name, result in sound.items()} == dict.fromkeys(names, Outcome.PASSED)


async def _end(backend: MutantBackend) -> None:
    assert isinstance(backend.inner, FakeBackend)
    await backend.inner.world.aclose()


@needs("docker", "root")
async def test_broken_promise_of_real_boxes_is_seen() -> None:
    """What only a kernel can show: files reached by name lose races, and processes outlive a time-out that is only told."""
    races = ["races/a-folder-swapped-for-a-link-leads-nowhere", "races/a-file-swapped-for-a-link-leads-nowhere"]
    lives = ["time-out-kills-what-is-deaf-to-every-signal", "time-out-kills-what-is-never-the-same-process"]
    async with docker() as inner:
        by_name = await results(MutantBackend(ByName, inner), *races)
        merciful = await results(MutantBackend(Merciful, inner), *(f"hostile/{name}" for name in lives))
    for name, result in {**by_name, **merciful}.items():
        assert result.outcome is Outcome.FAILED, name
        assert "positive control" not in result.text, result.text


async def test_negative_check_proves_nothing_without_its_control() -> None:
    found = await results(
        FakeBackend(), "isolation/metadata-service-is-out-of-reach", "isolation/only-harmless-devices"
    )
    assert {result.outcome for result in found.values()} == {Outcome.FAILED}
    network = BY_ID["isolation/no-network-interface"]
    assert network.control == "isolation/loopback-works"


async def _passes(rig: Rig) -> None:
    """It passes."""
    del rig


async def _raises(rig: Rig) -> None:
    """It raises what no check should."""
    del rig
    raise KeyError("surprise")


async def _hangs(rig: Rig) -> None:
    """It never ends."""
    await rig.box()
    await asyncio.Event().wait()


async def outcome(body: object, **gaps: str) -> Result:
    """The result of one check of ours, beside the catalogue's."""
    group = Group("own")
    check: Check = group.positive(limit_s=0.2)(body)  # type: ignore[arg-type]
    async with suite_spec() as spec:
        backend = FakeBackend()
        suite = Suite(backend, spec, gaps)
        result = await suite.run(check)
        assert await suite.aclose() == []
        assert await backend.owned() == []
        return result


async def test_surprises_and_hangs_are_failures_with_their_reason() -> None:
    assert (await outcome(_passes)).outcome is Outcome.PASSED
    surprise, hang = await outcome(_raises), await outcome(_hangs)
    assert (surprise.outcome, surprise.text) == (Outcome.FAILED, "KeyError: 'surprise'")
    assert (hang.outcome, hang.text) == (Outcome.FAILED, "not done within 0.2 s")


async def test_gaps_are_strict() -> None:
    passing, failing = "exec/output-comes-back", "isolation/loopback-works"
    found = await results(FakeBackend(), passing, failing, gaps={passing: "was broken", failing: "no kernel"})
    assert found[failing].outcome is Outcome.XFAILED
    assert found[failing].text == "no kernel"
    assert found[passing].outcome is Outcome.XPASSED


async def test_failing_control_is_named() -> None:
    found = await results(MutantBackend(Forgetful), "protocol/without-a-lease-nothing-runs")
    result = found["protocol/without-a-lease-nothing-runs"]
    assert result.outcome is Outcome.FAILED
    assert "its positive control protocol/same-id-replays-the-same-result failed" in result.text


async def test_boxes_left_behind_fail_the_run() -> None:
    backend = Immortal()
    async with suite_spec() as spec:
        suite = Suite(backend, spec, {})
        await suite.run(BY_ID["exec/output-comes-back"])
        left_behind = await suite.aclose()
    await _end(backend)
    assert len(left_behind) == 1
    assert Report(subject="x", results=[], left_behind=left_behind).exit_status == 1


async def test_named_run_tells_each_result_and_renders() -> None:
    told: list[str] = []
    report = await run_named(FakeBackend(), groups=["delta"], on_result=lambda result: told.append(result.check.id))
    assert told == [check.id for check in checks() if check.group == "delta"]
    assert (report.ok, report.exit_status, report.count(Outcome.PASSED)) == (True, 0, len(told))
    text = render(report)
    assert "conforms" in text.splitlines()[-1]
    assert all(name in text for name in told)


async def test_run_takes_a_spec_and_gaps_of_anybody() -> None:
    async with suite_spec() as spec:
        report = await run(FakeBackend(), spec=spec, gaps={"delta/added-files-are-told": "not yet"}, groups=["delta"])
    assert (report.ok, report.count(Outcome.XPASSED)) == (False, 1)


async def test_unknown_group_is_refused() -> None:
    with pytest.raises(Misconfigured, match="delta"):
        await run_named(FakeBackend(), groups=["deltas"])


def test_a_failure_is_told_with_its_reason() -> None:
    check = BY_ID["exec/output-comes-back"]
    failed = Result(check=check, outcome=Outcome.FAILED, text="expected this", seconds=0.5)
    assert "FAILED" in line(failed)
    assert "expected this" in line(failed)
    report = Report(subject="theirs", results=[failed], left_behind=["box-1"])
    assert not report.ok
    assert "LEFT BEHIND" in render(report)
    assert "DOES NOT CONFORM" in render(report).splitlines()[-1]
