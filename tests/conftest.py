"""Guards that every test runs under: promises kept, no traffic beyond loopback."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import lacking, promised


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for state: unix sockets below it have 107 bytes for their path, of which `tmp_path` may leave too few."""
    with tempfile.TemporaryDirectory(prefix="ty-") as folder:
        yield Path(folder)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        missing = lacking(mark.args)
        if not missing:
            continue
        if promised() & set(mark.args):
            pytest.fail(f"promised here, but missing: {'; '.join(missing)}", pytrace=False)
        pytest.skip("; ".join(missing))


LOOPBACK = ("127.", "::1", "localhost")
CLUSTER = ("10.244.", "10.245.0.1", "10.96.")
"""Pods, node and services of the throwaway cluster: all on this machine."""


@pytest.fixture(autouse=True)
def only_loopback(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave the machine: unix sockets and loopback only, and a cluster of the tests' own where they are about one."""
    connect = socket.socket.connect
    near = LOOPBACK + CLUSTER if request.node.get_closest_marker("cluster") else LOOPBACK

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(near):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
