"""Whose doing a box's end was: the model's (its grade is the floor) or ours (never a reward)."""

from orchestrator.backends.boxes import GO_CRASH, MEMORY_IS_FULL, SIGKILLED
from orchestrator.backends.docker.facts import ContainerState
from orchestrator.errors import SandboxDead, SandboxLost, SandboxOutOfMemory


def classify_end(
    state: ContainerState | None, *, killed_from_outside: bool, memory_share: float = 0.0
) -> SandboxDead | SandboxLost:
    """The error that tells what became of a box that does not answer any more.

    `state` is None when the engine knows no such container. Commands cannot signal the agent (it is PID 1 of its namespace, of another uid), so
    that memory and threads are the only ways in which they end a box; `memory_share` says how full a box is that runs and is silent. A kill
    that the engine was asked for is ours although memory ran out before; a kill without that came from a restart of the engine, or from a
    machine that itself ran out of memory.
    """
    if state is None:
        return SandboxLost("the box is gone")
    if state.running and memory_share >= MEMORY_IS_FULL:
        return SandboxOutOfMemory("the sandbox has used up its memory and answers no more")
    if state.running:
        return SandboxLost("the box runs but its agent does not answer")
    if killed_from_outside:
        return SandboxLost("the box was killed from outside")
    if state.oom_killed and state.exit_code == SIGKILLED:
        return SandboxOutOfMemory("the sandbox ran out of memory and was ended")
    if state.exit_code == GO_CRASH:
        return SandboxDead("the sandbox's supervisor was brought down by commands that used up memory or processes")
    return SandboxLost(f"the box ended with status {state.exit_code}, by no doing of its commands")
