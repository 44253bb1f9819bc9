"""Blame for a box's end, as a table."""

from dataclasses import replace

import pytest

from orchestrator.backends.docker.ends import classify_end
from orchestrator.backends.docker.facts import ContainerState
from orchestrator.errors import SandboxDead, SandboxLost, SandboxOutOfMemory

ENDED = ContainerState(
    id="0" * 64,
    name="tiltyard-a",
    image="sha256:0",
    running=False,
    exit_code=0,
    oom_killed=False,
    error="",
    pid=0,
    started_at=1.0,
    runtime="runc",
)


@pytest.mark.parametrize(
    ("exit_code", "oom_killed", "from_outside", "blamed"),
    [
        (137, True, False, SandboxOutOfMemory),  # memory ran out, and the agent went with it
        (2, False, False, SandboxDead),  # the agent's runtime found no thread or no memory
        (137, True, True, SandboxLost),  # memory had run out before, but an operator killed the box
        (137, False, False, SandboxLost),  # an operator, an engine restart, or the whole machine out of memory
        (143, False, False, SandboxLost),
        (255, False, False, SandboxLost),  # the engine's answer after a reboot
        (0, False, False, SandboxLost),
        (0, True, False, SandboxLost),  # a child was killed for memory long ago; the agent ended by itself
        (2, False, True, SandboxLost),
    ],
)
def test_end_is_blamed_on_the_model_only_where_its_commands_can_do_it(
    exit_code: int, oom_killed: bool, from_outside: bool, blamed: type[Exception]
) -> None:
    state = replace(ENDED, exit_code=exit_code, oom_killed=oom_killed)
    assert type(classify_end(state, killed_from_outside=from_outside)) is blamed


def test_a_box_that_is_gone_or_silent_is_lost() -> None:
    assert type(classify_end(None, killed_from_outside=False)) is SandboxLost
    running = replace(ENDED, running=True, oom_killed=True)
    assert type(classify_end(running, killed_from_outside=False)) is SandboxLost


@pytest.mark.parametrize(
    ("memory_share", "blamed"), [(0.95, SandboxOutOfMemory), (0.8, SandboxOutOfMemory), (0.5, SandboxLost)]
)
def test_a_silent_box_is_dead_where_its_commands_hold_its_memory(memory_share: float, blamed: type[Exception]) -> None:
    running = replace(ENDED, running=True)
    assert type(classify_end(running, killed_from_outside=False, memory_share=memory_share)) is blamed
