"""What a test needs of the machine: skipped on a laptop that lacks it, a failure where it was promised.

`TILTYARD_REQUIRE=docker,root` (set by `make test` and CI) names what was promised.
"""

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache

import pytest


@cache
def _docker() -> str:
    if not shutil.which("docker"):
        return "no docker command"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else "no Docker engine answers"


@cache
def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


@cache
def _runsc() -> str:
    if missing := _docker():
        return missing
    asked = ["docker", "info", "--format", "{{json .Runtimes}}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return "" if '"runsc"' in done.stdout else "the engine has no runtime runsc: sandbox_images/gvisor"


@cache
def _bwrap() -> str:
    return "" if shutil.which("bwrap") else "no bwrap command"


@cache
def _libseccomp() -> str:
    return "" if ctypes.util.find_library("seccomp") else "no libseccomp"


@cache
def _docker_registry() -> str:
    return "" if shutil.which("docker-registry") else "no docker-registry command: apt-get install docker-registry"


@cache
def _kubernetes() -> str:
    if os.environ.get("TILTYARD_TEST_KUBECONFIG") or shutil.which("kind"):
        return ""
    assets = os.environ.get("TILTYARD_KUBE_ASSETS", "")
    if not assets:
        return "set TILTYARD_TEST_KUBECONFIG to a cluster's kubeconfig, or install kind"
    return "" if os.access(f"{assets}/cluster", os.X_OK) else f"{assets} holds no cluster to start"


PROBES: dict[str, Callable[[], str]] = {
    "bwrap": _bwrap,
    "libseccomp": _libseccomp,
    "docker": _docker,
    "docker-registry": _docker_registry,
    "kubernetes": _kubernetes,
    "root": _root,
    "runsc": _runsc,
}
"""Name -> why it is missing, or an empty string."""


def promised() -> frozenset[str]:
    return frozenset(filter(None, os.environ.get("TILTYARD_REQUIRE", "").split(",")))


def needs(*names: str) -> pytest.MarkDecorator:
    """A mark for tests: `pytestmark = [needs("docker", "root")]`; conftest acts on it."""
    unknown = set(names) - PROBES.keys()
    if unknown:
        raise ValueError(f"unknown need: {sorted(unknown)}; known: {sorted(PROBES)}")
    return pytest.mark.needs(*names)


def lacking(names: tuple[str, ...]) -> list[str]:
    """Reasons why this machine cannot run a test that needs `names`."""
    return [f"{name}: {why}" for name in names if (why := PROBES[name]())]
