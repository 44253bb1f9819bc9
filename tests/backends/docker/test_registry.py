"""Names of backends: imported when asked for, and refused with a reason."""

import subprocess
import sys

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.registry import BACKENDS, backend_class
from orchestrator.errors import Misconfigured

LISTS_LIBRARIES = (
    "import sys, orchestrator.backends.registry as r; print('docker' in sys.modules);"
    "r.backend_class('docker'); print('docker' in sys.modules)"
)
WITHOUT_DOCKER = (
    "import sys; sys.modules['docker'] = None\n"
    "from orchestrator.backends.registry import backend_class\n"
    "from orchestrator.errors import Misconfigured\n"
    "try: backend_class('docker')\n"
    "except Misconfigured as error: print(error)"
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_row_names_a_class(name: str) -> None:
    assert callable(backend_class(name))


def test_docker_is_docker() -> None:
    assert backend_class("docker") is DockerBackend


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(Misconfigured, match="docker, fake"):
        backend_class("podman")


def test_a_library_is_imported_with_its_backend_only() -> None:
    assert run(LISTS_LIBRARIES) == "False\nTrue\n"


def test_a_missing_extra_names_what_to_install() -> None:
    assert "pip install 'tiltyard[docker]'" in run(WITHOUT_DOCKER)
