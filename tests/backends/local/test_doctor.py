"""What doctor says of this machine, by verdict."""

from pathlib import Path

import pytest

from orchestrator.backends.checks import Verdict
from orchestrator.backends.local.cgroups import Hierarchies
from orchestrator.backends.local.doctor import inspect_machine, judge_bwrap, limits
from orchestrator.backends.local.notices import notices
from orchestrator.backends.local.settings import LocalSettings
from tests.needs import needs

WHOLE = Hierarchies(v1={name: Path("/sys/fs/cgroup") / name for name in ("memory", "pids", "cpu")}, unified=None)
NOTHING = Hierarchies(v1={}, unified=None)
SETTINGS = LocalSettings(deployment="d", state_dir=Path("/srv/state/d"))


@pytest.mark.parametrize(
    ("status", "said", "verdict"),
    [
        (0, "bubblewrap 0.8.0", Verdict.OK),
        (0, "bubblewrap 0.11.1", Verdict.OK),
        (0, "bubblewrap 0.4.1", Verdict.FAIL),
        (127, "bwrap is not installed", Verdict.FAIL),
        (0, "bubblewrap", Verdict.FAIL),
    ],
)
def test_bubblewrap_is_judged_by_its_version(status: int, said: str, verdict: Verdict) -> None:
    check = judge_bwrap(status, said)
    assert check.verdict is verdict
    assert bool(check.fix) == (verdict is Verdict.FAIL)


def test_limits_that_do_not_hold_are_named() -> None:
    assert [check.verdict for check in limits(WHOLE, rooted=True)] == [Verdict.OK]
    [missing] = limits(NOTHING, rooted=True)
    assert missing.verdict is Verdict.WARN
    assert "processor time" in missing.detail
    assert limits(NOTHING, rooted=False)[0].verdict is Verdict.WARN


def test_every_start_says_what_is_not_stopped() -> None:
    assert len(notices(SETTINGS, WHOLE, rooted=True)) == 1
    assert "processor time" in notices(SETTINGS, NOTHING, rooted=True)[1]
    assert "without root" in notices(SETTINGS, NOTHING, rooted=False)[1]
    loud = LocalSettings(deployment="d", state_dir=Path("/srv/state/d"), any_image=True)
    assert "--host-root" in notices(loud, WHOLE, rooted=True)[-1]


@needs("bwrap", "libseccomp", "root")
def test_this_machine_can_make_boxes(tmp_path: Path) -> None:
    found = inspect_machine(LocalSettings(deployment="d", state_dir=tmp_path))
    assert [check.name for check in found if check.verdict is Verdict.FAIL] == []


def test_a_private_folder_among_the_shown_is_a_failure(tmp_path: Path) -> None:
    found = inspect_machine(LocalSettings(deployment="d", state_dir=tmp_path, paths=(Path("/root"),)))
    assert next(check for check in found if check.name == "shown folders").verdict is Verdict.FAIL
