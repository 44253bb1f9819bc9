"""Makes and unmakes boxes on this machine's Docker engine."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.agent.binary import agent_binary
from orchestrator.agent.client import AgentClient
from orchestrator.agent.config import RUN_DIR, AgentConfig
from orchestrator.agent.health import Kernel
from orchestrator.backends.agent_binary import install_agent
from orchestrator.backends.boxes import CONFIG_NAME, MEMORY_IS_FULL, MIB, SOCKET_MEMORY_SHARE, remove_workspace
from orchestrator.backends.checks import Verdict
from orchestrator.backends.docker import socket_memory
from orchestrator.backends.docker.egress.control import BOXES, Egress
from orchestrator.backends.docker.ends import classify_end
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.facts import ContainerState
from orchestrator.backends.docker.runtimes import Kind, check_runtime, expected_kind, kernel_mismatch, look_up
from orchestrator.backends.docker.settings import DockerSettings, engine_socket
from orchestrator.backends.docker.spec import (
    HOSTNAME,
    ROLE,
    Body,
    BoxPlan,
    agent_config,
    check_spec,
    container_name,
    container_spec,
    owner_labels,
    volume_name,
    volume_options,
)
from orchestrator.backends.finish import finish
from orchestrator.backends.machine import three_quarters_of_memory_mib
from orchestrator.backends.seccomp import profile
from orchestrator.errors import (
    Misconfigured,
    SandboxDead,
    SandboxError,
    SandboxLost,
    SandboxOverDisk,
    StartFailed,
    TiltyardError,
)
from orchestrator.interfaces import Capacity, OwnedSandbox, Sandbox, SandboxSpec, Scope
from orchestrator.models import NetworkAttempt, SandboxId
from orchestrator.repos.plain import PlainWorkspaces
from orchestrator.repos.watch import watch_space
from orchestrator.repos.workspace import OverlayVolume, Workspaces

log = logging.getLogger(__name__)

MACHINE_KERNEL = Path("/proc/version")
SOCKET_NAME = "agent.sock"
END_GRACE_S = 30.0
"""From an agent's last word to the engine's note of its end: milliseconds, but many seconds where a box of hundreds of processes dies of
memory on a machine that is busy. Blame rests on it, so that it is long."""
START_LOOK_S = 0.5
"""How often a start that takes long is checked for a box that ended at once."""


class DockerBackend:
    """Implements `orchestrator.interfaces.SandboxBackend`; owner of its engine connections: `async with`.

    `workspaces` stays its maker's. Boxes live on after `aclose()`: they are destroyed one by one, or attached to by the next process.
    """

    name = "docker"
    scope = Scope.HOST

    def __init__(
        self, settings: DockerSettings, workspaces: Workspaces, *, body: Callable[[BoxPlan], Body] = container_spec
    ) -> None:
        """`body` makes the create request from a plan. Tests weaken it, to see the suite turn red."""
        self._settings = settings
        self._body = body
        self._workspaces = workspaces
        self._engine = Engine(engine_socket(settings), timeout_s=settings.request_timeout_s)
        self._egress = Egress(settings, self._engine, use=BOXES)
        self._slots = asyncio.Semaphore(settings.start_slots)
        self._labels = {**owner_labels(settings.deployment, settings.host_id), ROLE: "box"}
        self._making: dict[SandboxId, float] = {}
        self._watch: asyncio.Task[None] | None = None
        self._seccomp: str | None = None
        self._kind: Kind | None = None
        self._notices: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        """Raises Misconfigured when the engine cannot give what is set (C26) or the system call filter is not sound, EngineUnavailable."""
        try:
            await self._filter()
            await self._check_engine()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(self._workspaces, PlainWorkspaces):
            self._watch = asyncio.create_task(watch_space(self._workspaces, self._end), name="watch boxes' space")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def notices(self) -> tuple[str, ...]:
        """What an operator must read at every start: what is open although boxes are made."""
        return self._notices

    async def aclose(self) -> None:
        """Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        await self._engine.aclose()

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        """See SandboxBackend. Whatever fails, the caller's cancellation included, nothing of the box is left behind."""
        check_spec(sandbox_id, spec)
        if sandbox_id in self._making:
            raise StartFailed(f"box {sandbox_id} is being made already")
        self._making[sandbox_id] = time.time()
        try:
            async with asyncio.timeout_at(deadline), self._slots:
                return await self._make(sandbox_id, spec, deadline)
        except TimeoutError:
            raise StartFailed("the box did not come up in time; the machine may be busy: try again") from None
        finally:
            del self._making[sandbox_id]

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        """A box made earlier. Raises SandboxLost, SandboxDead, EngineUnavailable."""
        state = await self._own(sandbox_id)
        if state is None or not state.running:
            raise await self._over_disk(sandbox_id) or await self._blame(state)
        if state.runtime != self._settings.runtime:
            log.warning(
                "box %s stays under %s, as it was made; new ones run under %s",
                sandbox_id,
                state.runtime,
                self._settings.runtime,
            )
        return self._client(sandbox_id, state.mounts[RUN_DIR])

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """Idempotent, also beside others; begun, it goes to its end. Raises EngineUnavailable, SandboxError (still busy: try again)."""
        await finish(self._remove(sandbox_id))

    async def check_network(self) -> None:
        """See EgressControl."""
        await self._egress.check()

    async def cut(self, sandbox_id: SandboxId) -> Sequence[NetworkAttempt]:
        """See EgressControl."""
        told = await finish(self._egress.cut(sandbox_id))
        if told is not None:
            return told
        own = await self._own(sandbox_id)
        if own is not None and own.wired:
            raise SandboxLost("the box's network broke: what holds it was removed")
        return ()

    async def tidy(self) -> None:
        """End proxies that no box uses: a killed process may have left one. Only for whoever holds the host's lock. Raises EngineUnavailable."""
        await self._egress.sweep()

    async def owned(self) -> Sequence[OwnedSandbox]:
        """Every box of this deployment and host that left a container, a workspace, a wire, or several. Raises EngineUnavailable."""
        found = {name: OwnedSandbox(id=name, created_at=at, running=False) for name, at in self._making.items()}
        for name in await self._workspaces.owned():
            found.setdefault(name, OwnedSandbox(id=name, created_at=await self._made_at(name), running=False))
        wires, boxes = await self._egress.wires(), await self._engine.containers(self._labels)
        for entry in (*wires, *boxes):
            if entry.ending and await self._engine.inspect(entry.id) is None:
                continue
            name = SandboxId(entry.labels["tiltyard.sandbox"])
            found[name] = OwnedSandbox(id=name, created_at=entry.created_at, running=entry.running and entry in boxes)
        return [found[name] for name in sorted(found)]

    async def capacity(self) -> Capacity:
        """What all boxes together may be promised."""
        memory_mib = self._settings.memory_limit_mib or await asyncio.to_thread(three_quarters_of_memory_mib)
        return Capacity(memory_mib=memory_mib, boxes=self._settings.max_boxes, start_slots=self._settings.start_slots)

    async def _check_engine(self) -> Kind:
        """What boxes must turn out to run on: before the first is made, whether or not the backend was entered."""
        facts, runtime = await self._engine.facts(), self._settings.runtime
        program = await look_up(runtime, facts)
        check = check_runtime(runtime, facts, program, accept_old_runc=self._settings.accept_old_runc)
        if check.verdict is Verdict.FAIL:
            raise Misconfigured(f"{check.detail}: {check.fix}")
        if any("name=userns" in option or "name=rootless" in option for option in facts.security_options):
            raise Misconfigured("the engine remaps users (userns-remap or rootless): workspaces would belong to nobody")
        if check.verdict is Verdict.WARN:
            log.warning("%s", check.detail)
            self._notices = (check.detail,)
        self._kind = expected_kind(runtime, program)
        return self._kind

    async def _filter(self) -> str:
        """The system call filter, read once."""
        if self._seccomp is None:
            self._seccomp = await asyncio.to_thread(profile, self._settings.seccomp_profile)
        return self._seccomp

    async def _make(self, sandbox_id: SandboxId, spec: SandboxSpec, deadline: float) -> Sandbox:
        image = await self._engine.image(spec.image)
        if image is None:
            raise Misconfigured(f"the engine has no image {spec.image!r}; nothing is pulled while tasks run")
        kind = self._kind or await self._check_engine()
        agent = await asyncio.to_thread(self._install_agent)
        seccomp = await self._filter()
        now = time.time()
        expires_at = now + self._settings.lifetime_s
        workspace = await self._workspaces.prepare(sandbox_id, spec.template, spec.limits, expires_at=expires_at)
        plan = BoxPlan(
            sandbox_id=sandbox_id,
            spec=spec,
            workspace=workspace,
            image_id=image.id,
            image_environment=image.environment,
            agent=agent,
            seccomp=seccomp,
            deployment=self._settings.deployment,
            host_id=self._settings.host_id,
            runtime=self._settings.runtime,
            own_kernel=kind is Kind.GVISOR,
            created_at=now,
            expires_at=expires_at,
        )
        try:
            return await self._start(plan, deadline)
        except SandboxLost as error:
            await finish(self._abandon(sandbox_id))
            raise StartFailed(f"the box did not start: {error.message}") from error
        except BaseException:
            await finish(self._abandon(sandbox_id))
            raise

    async def _start(self, plan: BoxPlan, deadline: float) -> Sandbox:
        if plan.spec.network.allow:
            wire = await self._egress.join(
                plan.sandbox_id, plan.spec.network, hostname=HOSTNAME, labels=plan.spec.labels
            )
            plan = replace(plan, wire=wire)
        await asyncio.to_thread(_write_config, plan.workspace.agent_dir, agent_config(plan))
        mount = plan.workspace.workspace_mount
        if isinstance(mount, OverlayVolume):
            labels = {**self._labels, "tiltyard.sandbox": plan.sandbox_id}
            await self._engine.create_volume(volume_name(plan.sandbox_id), volume_options(mount), labels)
        container = await self._engine.create(container_name(plan.sandbox_id), self._body(plan))
        await self._engine.start(container)
        return await self._ready(plan, container, deadline)

    async def _ready(self, plan: BoxPlan, container: str, deadline: float) -> Sandbox:
        """The box, once its agent answers; a box that ended at once is not waited for."""
        state = await self._engine.inspect(container)
        client = self._client(plan.sandbox_id, plan.workspace.agent_dir)
        answering = asyncio.create_task(client.wait_ready(deadline=deadline))
        try:
            while not (await asyncio.wait({answering}, timeout=START_LOOK_S))[0]:
                state = await self._engine.inspect(container)
                if state is None or not state.running:
                    raise StartFailed(f"the box ended at its start, with status {state.exit_code if state else '?'}")
            self._verify(plan, (await answering).kernel, state)
            if state is not None and not plan.own_kernel:
                await _limit_sockets(plan, state)
        except BaseException:
            answering.cancel()
            await asyncio.wait({answering})
            await client.aclose()
            raise
        return client

    def _verify(self, plan: BoxPlan, kernel: Kernel, state: ContainerState | None) -> None:
        """That a box runs under the runtime that was asked for, by the engine's word and by its kernel's (C26). Raises Misconfigured."""
        if state is not None and state.runtime != plan.runtime:
            raise Misconfigured(
                f"the engine started a box under {state.runtime!r} where {plan.runtime!r} was asked for"
            )
        expected = Kind.GVISOR if plan.own_kernel else Kind.RUNC
        wrong = kernel_mismatch(expected, MACHINE_KERNEL.read_text(encoding="utf-8").strip(), kernel)
        if wrong:
            raise Misconfigured(
                f"the engine's runtime {plan.runtime!r} is not what its name says: a box started under it, and {wrong}"
            )

    def _client(self, sandbox_id: SandboxId, agent_dir: Path) -> AgentClient:
        try:
            return AgentClient(sandbox_id, agent_dir / SOCKET_NAME, explain_loss=lambda: self._explain_loss(sandbox_id))
        except ValueError as error:
            raise Misconfigured("the state folder's path is too long for a unix socket below it") from error

    async def _explain_loss(self, sandbox_id: SandboxId) -> TiltyardError:
        """Why a box does not answer. The agent's silence comes a moment before the engine knows of its end."""
        try:
            own = await self._own(sandbox_id)
            if own is not None and own.running and await self._engine.memory_share(own.id) < MEMORY_IS_FULL:
                with suppress(TimeoutError):
                    own = await self._engine.wait_exit(own.id, deadline=time.monotonic() + END_GRACE_S)
            return await self._over_disk(sandbox_id) or await self._blame(own)
        except SandboxError as error:
            return error

    async def _end(self, sandbox_id: SandboxId) -> None:
        """Of a box beyond its disk limit: its processes end, its removal is its owner's."""
        await self._engine.kill(container_name(sandbox_id))

    async def _over_disk(self, sandbox_id: SandboxId) -> SandboxOverDisk | None:
        """What explains the end of a box that was found beyond its limit; None for every other."""
        if isinstance(self._workspaces, PlainWorkspaces) and await self._workspaces.was_overfull(sandbox_id):
            return SandboxOverDisk("the sandbox took more disk than its limit and was ended")
        return None

    async def _blame(self, state: ContainerState | None) -> SandboxDead | SandboxLost:
        if state is None:
            return classify_end(None, killed_from_outside=False)
        if state.running:
            memory_share = await self._engine.memory_share(state.id)
            return classify_end(state, killed_from_outside=False, memory_share=memory_share)
        outside = await self._engine.killed_from_outside(state.id, state.started_at)
        return classify_end(state, killed_from_outside=outside)

    async def _own(self, sandbox_id: SandboxId) -> ContainerState | None:
        """The box's container; None when there is none, or one of that name that is not ours."""
        state = await self._engine.inspect(container_name(sandbox_id))
        if state is None or any(state.labels.get(key) != value for key, value in self._labels.items()):
            return None
        return state

    async def _remove(self, sandbox_id: SandboxId) -> None:
        """Container, then network, volume and workspace: each is held by the container."""
        own = await self._own(sandbox_id)
        if own is not None:
            await self._engine.remove(own.id)
        await self._egress.leave(sandbox_id)
        for volume in await self._engine.volumes({**self._labels, "tiltyard.sandbox": sandbox_id}):
            await self._engine.remove_volume(volume)
        await remove_workspace(self._workspaces, sandbox_id)

    async def _abandon(self, sandbox_id: SandboxId) -> None:
        """Remove what a failed start left; what cannot be removed now is the sweeper's, who finds it by name."""
        try:
            await self._remove(sandbox_id)
        except TiltyardError as error:
            log.error("box %s is left behind after a failed start: %s", sandbox_id, error.message)

    async def _made_at(self, sandbox_id: SandboxId) -> float:
        """Of a box without a container: 0.0 where not even its folder is left."""
        folder = self._settings.state_dir / "boxes" / sandbox_id
        try:
            return (await asyncio.to_thread(folder.stat)).st_mtime
        except OSError:
            return 0.0

    def _install_agent(self) -> Path:
        return install_agent(self._settings.agent_binary or agent_binary(), self._settings.state_dir)


def _write_config(agent_dir: Path, config: AgentConfig) -> None:
    (agent_dir / CONFIG_NAME).write_bytes(config.to_json())


async def _limit_sockets(plan: BoxPlan, state: ContainerState) -> None:
    """Where it cannot be done the box holds by its other limits, and the log says so."""
    limit_bytes = plan.spec.limits.memory_mib * MIB // SOCKET_MEMORY_SHARE
    try:
        await asyncio.to_thread(socket_memory.limit, state.pid, limit_bytes)
    except OSError as error:
        log.warning("what lies in the sockets of box %s is not limited: %s", plan.sandbox_id, error.strerror)
