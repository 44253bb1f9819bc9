"""Too little disk is said before anything is served."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.backends.checks import Verdict
from orchestrator.cli.doctor import check_disk
from orchestrator.cli.wiring import Engine, free_disk_mib, host_settings
from orchestrator.errors import Misconfigured
from orchestrator.settings import Settings
from tests.e2e.harness import make_repository, task_rows, write_tasks
from tests.needs import needs


@pytest.mark.parametrize(
    ("free_mib", "verdict"), [(2047, Verdict.FAIL), (2048, Verdict.WARN), (10_239, Verdict.WARN), (10_240, Verdict.OK)]
)
def test_doctor_tells_too_little_from_little(free_mib: int, verdict: Verdict) -> None:
    assert check_disk(free_mib, 2048).verdict is verdict


def made(*, on_disk: bool = True) -> Engine:
    return Engine(backend=None, templates=None, tidy=None, memory_limit_mib=1000, on_disk=on_disk)  # type: ignore[arg-type]  # not looked at


def test_the_limit_on_promises_follows_free_space_reserve_and_overcommit(tmp_path: Path) -> None:
    """Other writers of this machine move free space a little meanwhile."""
    settings = Settings(state_dir=tmp_path / "not" / "there", disk_reserve_mib=64, disk_overcommit=2.0)
    free_mib = free_disk_mib(settings.state_dir)
    limit_mib = host_settings(settings, made()).disk_limit_mib
    assert limit_mib is not None
    assert abs(limit_mib - 2 * (free_mib - 64)) < 2000
    assert host_settings(settings, made(on_disk=False)).disk_limit_mib is None


def test_boxes_left_by_an_earlier_process_may_be_finished_on_a_low_disk(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, disk_reserve_mib=10**9)
    with pytest.raises(Misconfigured, match="too little disk"):
        host_settings(settings, made())
    (settings.deployment_dir / "boxes" / "r-1").mkdir(parents=True)
    assert host_settings(settings, made()).disk_limit_mib == 0


@needs("docker")
def test_serve_refuses_with_words(tmp_path: Path, short_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks.jsonl", task_rows(tmp_path / "repo", make_repository(tmp_path / "repo")))
    env = {"PATH": "/usr/bin:/bin:/usr/sbin", "TILTYARD_DISK_RESERVE_MIB": str(10**9), "TILTYARD_ACCEPT_OLD_RUNC": "1"}
    command = [sys.executable, "-m", "orchestrator.cli.main", "serve", "--tasks", str(tasks), "--insecure-loopback"]
    command += ["--state-dir", str(short_path), "--deployment", "low-disk", "--port", "0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "too little disk" in done.stderr
    assert "TILTYARD_STATE_DIR" in done.stderr
