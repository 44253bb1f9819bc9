"""A fake box, leased, with an operation per line."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from orchestrator.backends.fake import FakeBackend, FakeWorld
from orchestrator.conformance.rig import Box, leased
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, SandboxId

SPEC = SandboxSpec(image="any", template=None, limits=Limits())

Opened = Callable[..., Awaitable[Box]]


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


async def open_box(backend: FakeBackend, name: str = "box", spec: SandboxSpec = SPEC) -> Box:
    return await leased(await backend.create(SandboxId(name), spec, deadline=soon()))


@pytest.fixture
async def world() -> AsyncIterator[FakeWorld]:
    """Ended after the test, with whatever runs in it."""
    made = FakeWorld()
    yield made
    await made.aclose()


@pytest.fixture
async def box(world: FakeWorld) -> Box:
    return await open_box(FakeBackend(world=world))
