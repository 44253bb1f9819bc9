"""A box's first process: on record before it runs, known again by more than its pid, ended whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.local import launch, processes
from orchestrator.backends.local.ends import classify_end
from orchestrator.backends.local.launch import Order
from orchestrator.backends.local.processes import Known, Record
from orchestrator.errors import SandboxDead, SandboxLost, SandboxOutOfMemory, StartFailed

DIES_BEFORE_GO = """
import os, sys
from pathlib import Path
from orchestrator.backends.local import launch, processes
processes.write_record = lambda folder, record: os._exit(9)  # as if killed before the record was there
launch.launch(launch.Order(folder=Path(sys.argv[1]), command=["touch", sys.argv[2]], entered=(), descriptors=()))
"""


def order(folder: Path, *command: str, entered: tuple[str, ...] = ()) -> Order:
    return Order(folder=folder, command=command, entered=entered, descriptors=())


def gone(process: Known) -> None:
    descriptor = processes.watch(process)
    if descriptor is not None:
        processes._wait_ended([descriptor])
        os.close(descriptor)


def first_child(process: Known) -> int:
    for _ in range(2000):
        if found := processes.children(process.pid):
            return found[0]
        time.sleep(0.005)
    raise AssertionError("it has no child")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Known]:
    process = launch.launch(order(tmp_path, "sh", "-c", "trap '' TERM HUP INT; sleep 60 & wait; sleep 60"))
    yield process
    processes.end(process, None)


def test_what_is_launched_is_on_record_and_nobodys_child(tmp_path: Path, sleeper: Known) -> None:
    record = processes.read_record(tmp_path)
    assert record is not None
    assert record.process == sleeper
    assert abs(record.created_at - time.time()) < 60
    assert processes.lives(sleeper)
    assert processes.parent_of(sleeper.pid) != os.getpid()
    assert os.getsid(sleeper.pid) == sleeper.pid != os.getsid(0)


def test_it_gets_no_environment_and_no_terminal_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    gone(launch.launch(order(tmp_path, "sh", "-c", f"env > {tmp_path}/env; ls -l /proc/self/fd > {tmp_path}/fds")))
    assert "canary" not in (tmp_path / "env").read_text()
    assert "PATH=" in (tmp_path / "env").read_text()
    assert "pipe" not in (tmp_path / "fds").read_text()


def test_nothing_runs_when_its_starter_dies_before_the_record(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    command = [sys.executable, "-c", DIES_BEFORE_GO, str(tmp_path), str(canary)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 9
    gone(launch.launch(order(tmp_path, "touch", str(tmp_path / "control"))))
    assert (tmp_path / "control").exists()  # a later launcher ran to its end, the earlier one read the end of its pipe
    assert not canary.exists()


def test_the_groups_are_entered_first(tmp_path: Path) -> None:
    procs = tmp_path / "cgroup.procs"
    process = launch.launch(order(tmp_path, "true", entered=(str(procs),)))
    gone(process)
    assert procs.read_text() == f"{process.pid}\n"


def test_a_group_that_cannot_be_entered_stops_it(tmp_path: Path) -> None:
    gone(launch.launch(order(tmp_path, "touch", str(tmp_path / "ran"), entered=("/no/such/cgroup.procs",))))
    assert not (tmp_path / "ran").exists()
    assert "cgroup.procs" in launch.log_tail(tmp_path)


def test_a_pid_alone_is_nobody(sleeper: Known) -> None:
    for other in (replace(sleeper, start=sleeper.start - 1), replace(sleeper, boot="another")):
        assert not processes.lives(other)
        assert processes.watch(other) is None
        processes.end(other, None)
    assert processes.lives(sleeper)


def test_its_children_end_with_it(sleeper: Known) -> None:
    child = first_child(sleeper)
    known = processes.known(child)
    processes.end(sleeper, None)
    processes.end(sleeper, None)
    assert not processes.lives(sleeper)
    assert known is not None
    assert not processes.lives(known)


def test_a_child_that_is_not_its_own_is_spared(sleeper: Known) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        processes.end(sleeper, other.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": {"pid": 1}}', '{"process": 3}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / processes.RECORD).write_text(text)
    assert processes.read_record(tmp_path) is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record(process=Known(pid=1, start=2, boot="b"), created_at=3.5, ended_by_us=True)
    processes.write_record(tmp_path, record)
    assert processes.read_record(tmp_path) == record


def test_the_status_is_what_was_written_last(tmp_path: Path) -> None:
    assert processes.read_status(tmp_path) == processes.Status()
    (tmp_path / processes.STATUS).write_text('{ "child-pid": 7, "net-namespace": 1 }\n{ "exit-code": 137 }\n')
    assert processes.read_status(tmp_path) == processes.Status(child=7, exit_code=137)


def test_no_program_is_a_failed_start(tmp_path: Path) -> None:
    with pytest.raises((StartFailed, FileNotFoundError)):
        launch.launch(order(tmp_path / "missing", "true"))


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"exit_code": 128 + signal.SIGKILL, "oom_kills": 1}, SandboxOutOfMemory),
        ({"exit_code": 128 + signal.SIGKILL}, SandboxLost),
        ({"exit_code": 128 + signal.SIGKILL, "oom_kills": 1, "ended_by_us": True}, SandboxLost),
        ({"exit_code": 2}, SandboxDead),
        ({"exit_code": None, "oom_kills": 3}, SandboxLost),
        ({"running": True}, SandboxLost),
        ({"running": True, "memory_share": 0.9}, SandboxOutOfMemory),
    ],
)
def test_blame(facts: dict[str, object], kind: type[Exception]) -> None:
    nothing = {"running": False, "ended_by_us": False, "exit_code": 0, "oom_kills": 0, "memory_share": 0.0}
    assert type(classify_end(**{**nothing, **facts})) is kind  # type: ignore[arg-type]
