"""What an operator sees of runtimes at `tiltyard serve` and `tiltyard doctor`: real processes over the machine's engine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.backends.docker.runtimes import runc_is_fixed
from tests.needs import needs

pytestmark = needs("docker")

COMMAND = (sys.executable, "-m", "orchestrator.cli.main")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("TILTYARD_")}


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[list[str]]:
    """Of a server without tasks, in a short folder of its own."""
    tasks = tmp_path / "tasks.jsonl"
    row = {
        "id": "t",
        "image": "tiltyard/python:3.11",
        "prompt": "p",
        "grader": "file_f1",
        "file_f1": {"source": "submitted", "gold": ["a"]},
    }
    tasks.write_text(json.dumps(row | {"repo": str(tmp_path), "commit": "a" * 40}) + "\n")
    with tempfile.TemporaryDirectory(prefix="tc-") as state:
        yield ["--tasks", str(tasks), "--insecure-loopback", "--port", "0", "--state-dir", state]


def serve(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "serve", *arguments], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def refused(*arguments: str) -> str:
    process = serve(*arguments)
    said, complaint = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, ""), complaint
    return complaint.splitlines()[-1]


def started(*arguments: str) -> str:
    """What a server that did start wrote on standard error."""
    process = serve(*arguments)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=60)
    assert "serving on" in line, complaint
    return complaint


def old_runc() -> bool:
    done = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=False)
    return not runc_is_fixed(done.stdout.partition("version ")[2])


def test_C26_a_runtime_that_is_missing_refuses_to_start(arguments: list[str]) -> None:
    said = refused(*arguments, "--runtime", "nosuch", "--accept-old-runc")
    assert "the engine has no runtime 'nosuch'" in said
    assert "runc" in said


def test_C8_an_old_runc_is_refused_and_when_accepted_told_loudly(arguments: list[str]) -> None:
    if not old_runc():
        pytest.skip("this machine's runc has the fixes")
    said = refused(*arguments)
    assert "CVE-2025-31133" in said
    assert "--accept-old-runc" in said
    complaint = started(*arguments, "--accept-old-runc")
    assert "tiltyard: WARNING: runc" in complaint
    assert complaint.count("CVE-2025-31133") >= 2, "beside the log's own line"


@needs("runsc")
def test_on_gvisor_nothing_needs_to_be_accepted(arguments: list[str]) -> None:
    assert "WARNING" not in started(*arguments, "--runtime", "runsc")


@needs("runsc")
def test_doctor_tells_what_gvisor_is_there(tmp_path: Path) -> None:
    command = [*COMMAND, "doctor", "--json", "--runtime", "runsc", "--state-dir", str(tmp_path)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60, check=False)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["runtime"]["verdict"] == "ok"
    assert "gVisor release-" in rows["runtime"]["detail"]
    assert "platform systrap" in rows["runtime"]["detail"]
    assert "runsc (gVisor)" in rows["runtimes"]["detail"]
