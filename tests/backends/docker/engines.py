"""An engine of a test's own, with runtimes of a test's own: the machine's engine and its configuration are not touched."""

import asyncio
import io
import json
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.backends.docker.engine import Engine
from orchestrator.errors import EngineUnavailable

IMAGE = "tiltyard-test/empty:1"
START_S = 30.0


@asynccontextmanager
async def private_engine(runtimes: Mapping[str, Sequence[str]]) -> AsyncIterator[str]:
    """Its unix:// address. `runtimes`: name -> path and arguments. It holds one image, IMAGE, which is all but empty: an agent needs no more."""
    with tempfile.TemporaryDirectory(prefix="te-", ignore_cleanup_errors=True) as short:
        folder = Path(short)
        socket = f"unix://{folder}/docker.sock"
        process = await asyncio.to_thread(_launch, folder, socket, runtimes)
        try:
            await _answering(socket, process)
            await _import_image(socket, folder)
            yield socket
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, START_S)
            await asyncio.to_thread(_unmount, folder)


def _launch(folder: Path, socket: str, runtimes: Mapping[str, Sequence[str]]) -> "subprocess.Popen[bytes]":
    named = {name: {"path": words[0], "runtimeArgs": list(words[1:])} for name, words in runtimes.items()}
    config = folder / "daemon.json"
    config.write_text(json.dumps({"runtimes": named}))
    command = ["dockerd", "--config-file", str(config), "--host", socket, "--bridge", "none", "--iptables=false"]
    command += ["--ip-forward=false", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["--pidfile", str(folder / "pid"), "--storage-driver", "overlay2"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


async def _answering(socket: str, process: "subprocess.Popen[bytes]") -> None:
    async with asyncio.timeout(START_S):
        while True:
            assert process.poll() is None, "the engine ended"
            engine = Engine(socket, timeout_s=START_S)
            try:
                await engine.facts()
            except EngineUnavailable:
                await asyncio.sleep(0.1)
            else:
                return
            finally:
                await engine.aclose()


async def _import_image(socket: str, folder: Path) -> None:
    root = folder / "root.tar"
    with tarfile.open(root, "w") as tar:
        for name in ("etc", "home/agent", "run/tiltyard", "tmp", "workspace", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.addfile(tarfile.TarInfo("tiltyard-agent"), io.BytesIO())
    engine = Engine(socket, timeout_s=START_S)
    repository, _, tag = IMAGE.rpartition(":")
    try:
        await engine.import_image(root, repository=repository, tag=tag, labels={}, environment={})
    finally:
        await engine.aclose()


def _unmount(folder: Path) -> None:
    """What the engine leaves mounted below its own folders."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for target in sorted((line.split()[4] for line in lines), reverse=True):
        if target.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", target], check=False)


def program(path: Path, script: str) -> str:
    """A runtime of a test's own: a shell script. Its path."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def real(name: str) -> str:
    found = shutil.which(name, path="/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
    assert found, name
    return found
