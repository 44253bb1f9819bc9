"""`sandbox_images/gvisor`: what it refuses, and that it leaves an operator's configuration as it was. The real one is hidden under a tmpfs."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.needs import needs

ROOT = Path(__file__).parent.parent.parent.parent
SCRIPT = ROOT / "sandbox_images" / "gvisor"
GOOD = {"path": "/usr/local/bin/runsc", "runtimeArgs": ["--platform=systrap", "--host-uds=create", "--overlay2=none"]}


def run(**env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SCRIPT], env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)


def run_over(folder: Path, config: str | None) -> "subprocess.CompletedProcess[str]":
    """With `config` as the engine's configuration, which is then found in `folder`."""
    if config is not None:
        (folder / "daemon.json").write_text(config)
        (folder / "daemon.json").chmod(0o600)
    script = 'mount --bind "$1" /etc/docker && exec "$2"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", folder, SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_gvisor_that_is_too_old_is_refused_with_where_to_get_another(tmp_path: Path) -> None:
    old = tmp_path / "runsc"
    old.write_text("#!/bin/sh\necho 'runsc version 0.0~20221219.0'\n")
    old.chmod(0o755)
    done = run(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "no gVisor of 20230801 or newer" in done.stderr
    assert "gvisor.dev/docs/user_guide/install" in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(TILTYARD_RUNSC=str(tmp_path / "none"))
    assert (done.returncode, "TILTYARD_RUNSC names no file" in done.stderr) == (1, True)


@needs("docker", "root", "runsc")
def test_running_it_again_changes_nothing() -> None:
    before = Path("/etc/docker/daemon.json").read_bytes()
    assert run().returncode == 0
    assert Path("/etc/docker/daemon.json").read_bytes() == before


@needs("docker", "root", "runsc")
def test_it_is_registered_beside_what_is_there(tmp_path: Path) -> None:
    others = {"live-restore": True, "runtimes": {"crun": {"path": "/usr/bin/crun"}}}
    done = run_over(tmp_path, json.dumps(others))
    assert done.returncode == 0, done.stderr
    written = tmp_path / "daemon.json"
    found = json.loads(written.read_text())
    assert found == {**others, "runtimes": {**others["runtimes"], "runsc": GOOD}}  # type: ignore[dict-item]
    assert written.stat().st_mode & 0o777 == 0o600


@needs("docker", "root", "runsc")
@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "is no JSON"),
        (json.dumps({"runtimes": {"runsc": {"runtimeType": "io.containerd.runsc.v1"}}}), "containerd shim"),
        (json.dumps({"runtimes": {"runsc": {**GOOD, "runtimeArgs": ["--ignore-cgroups"]}}}), "--ignore-cgroups"),
        (json.dumps({"runtimes": {"runsc": {**GOOD, "runtimeArgs": []}}}), "--host-uds=create"),
        (json.dumps({"runtimes": {"runsc": {**GOOD, "runtimeArgs": ["--host-uds=all"]}}}), "--overlay2=none"),
    ],
)
def test_what_an_operator_wrote_is_refused_with_words_and_left_alone(tmp_path: Path, config: str, word: str) -> None:
    done = run_over(tmp_path, config)
    assert (done.returncode, word in done.stderr) == (1, True), done.stderr
    assert (tmp_path / "daemon.json").read_text() == config
