"""The agent's image: from scratch, the same bytes for the same program, and what a cluster's containerd makes of it."""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from orchestrator.agent.binary import agent_binary
from orchestrator.backends.kubernetes.agent_image import agent_image_reference, write_agent_image
from tests.kubernetes.cluster import Cluster
from tests.needs import needs


def test_its_name_is_the_programs_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(agent_binary().read_bytes()).hexdigest()
    assert write_agent_image(tmp_path / "a.tar") == f"tiltyard/agent:{digest[:12]}" == agent_image_reference()


def test_neither_the_programs_time_nor_its_place_changes_a_byte(tmp_path: Path) -> None:
    archives = set()
    for number, place in enumerate(("a", "b")):
        copy = tmp_path / place / agent_binary().name
        copy.parent.mkdir()
        shutil.copyfile(agent_binary(), copy)
        os.utime(copy, (number, number))
        write_agent_image(copy.with_suffix(".tar"), copy)
        archives.add(copy.with_suffix(".tar").read_bytes())
    assert len(archives) == 1


def test_another_program_is_another_image(tmp_path: Path) -> None:
    other = tmp_path / agent_binary().name
    other.write_bytes(b"another")
    assert write_agent_image(tmp_path / "b.tar", other) != agent_image_reference()


def test_it_holds_the_program_and_nothing_else(tmp_path: Path) -> None:
    write_agent_image(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        (described,) = json.loads(_read(archive, "manifest.json"))
        config = json.loads(_read(archive, described["Config"]))
        (name,) = described["Layers"]
        layer = archive.extractfile(name)
        assert layer is not None
        with tarfile.open(fileobj=layer) as files:
            (entry,) = files.getmembers()
            assert (entry.name, entry.mode, entry.uid, entry.mtime) == ("tiltyard-agent", 0o755, 0, 0)
            assert _read(files, entry.name) == agent_binary().read_bytes()
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(_read(archive, name)).hexdigest()}"]
    assert config["config"]["Entrypoint"] == ["/tiltyard-agent"]
    assert (config["os"], config["architecture"]) == ("linux", agent_binary().name.rpartition("-")[2])


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def test_the_command_writes_it_and_prints_its_name(tmp_path: Path) -> None:
    tiltyard = Path(sys.executable).with_name("tiltyard")
    asked = [tiltyard, "deploy", "agent-image", tmp_path / "a.tar"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == agent_image_reference()
    write_agent_image(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@needs("kubernetes", "root")
@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_a_clusters_containerd_runs_it(cluster: Cluster) -> None:
    """By its entry point alone; the control is a program that is not in it."""
    protocol = subprocess.run([agent_binary(), "version"], capture_output=True, text=True, check=True).stdout
    assert _ran(cluster, {"args": ["version"]}) == ("Completed", protocol)
    assert _ran(cluster, {"command": ["/bin/sh"]})[0] in ("StartError", "ContainerCannotRun")


def _ran(cluster: Cluster, how: dict[str, list[str]]) -> tuple[str, str]:
    """Why a pod of the image ended, and what it wrote."""
    name = f"agent-image-{secrets.token_hex(3)}"
    container = {"name": "c", "image": agent_image_reference(), "imagePullPolicy": "IfNotPresent", **how}
    spec = {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    cluster.kubectl("apply", "-n", "default", "-f", "-", stdin=json.dumps(pod))
    path = "jsonpath={.status.containerStatuses[0].state.terminated.reason}"
    try:
        deadline = time.monotonic() + 90
        while not (reason := cluster.kubectl("get", "pod", name, "-n", "default", "-o", path)):
            assert time.monotonic() < deadline, cluster.kubectl("describe", "pod", name, "-n", "default")
            time.sleep(0.3)
        return reason, cluster.kubectl("logs", name, "-n", "default", check=False)
    finally:
        cluster.kubectl("delete", "pod", name, "-n", "default", "--grace-period=0", "--force")
