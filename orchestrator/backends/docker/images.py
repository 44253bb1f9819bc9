"""The engine's images for templates: references resolved, set-up commands run and kept."""

import asyncio
import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

from orchestrator.backends.boxes import MIB
from orchestrator.backends.docker import base_images
from orchestrator.backends.docker.egress.control import SETUP, Egress
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.settings import DockerSettings, engine_socket
from orchestrator.backends.docker.spec import MASKED_PATHS, READONLY_PATHS, ROLE, Wire, network_mode, owner_labels
from orchestrator.backends.finish import finish
from orchestrator.backends.seccomp import profile
from orchestrator.errors import EngineUnavailable, Misconfigured, RepositoryError, StartFailed, TiltyardError
from orchestrator.models import DEFAULT_WORKDIR, JsonValue, Network
from orchestrator.repos.workspace import check_state_dir

log = logging.getLogger(__name__)
T = TypeVar("T")

HOSTNAME = "setup"
SETUP_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")
"""What package managers need of root; nothing that reaches past the container."""
SETUP_MEMORY_MIB = 4096
SETUP_PIDS = 1024
LOG_BYTES = "4m"
LOG_LINES = 40
SETUP_SCRIPT = """
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory 'GIT_CONFIG_VALUE_0=*'
owner=$1; shift
for command in "$@"; do
    printf '+ %s\\n' "$command"
    sh -ec "$command" </dev/null || { status=$?; break; }
done
[ -z "$owner" ] || chown -Rh "$owner" . || exit
exit "${status:-0}"
"""
"""Git is told to trust the tree, which without root belongs to the server's user. Owners are mended after a failure, too: else files of the
container's root would stay on the disk, which nobody else may remove."""
PULLED_BY_HAND = "the engine has no image {name!r}, and nothing is pulled while tasks run: docker pull {name}"
OWN_IMAGE = "the engine has no image {name!r}: make it with `make images`, or sandbox_images/build"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupPlan:
    """Everything that `setup_spec` decides from. `owner` is "uid:gid" for what the commands leave, empty: as they left it."""

    image_id: str
    commands: tuple[str, ...]
    workdir: str
    volume: str
    wire: Wire | None
    owner: str
    seccomp: str
    runtime: str
    labels: Mapping[str, str]


def setup_script(wire: Wire | None) -> str:
    """The proxy is named here, not in the container's environment, which would become the task image's."""
    told = wire.environment if wire else {}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items()) + SETUP_SCRIPT


def setup_spec(plan: SetupPlan) -> dict[str, JsonValue]:
    """The body of the create request of a throw-away set-up container: root inside, writable root, the workspace on top."""
    return {
        "Image": plan.image_id,
        "User": "0:0",
        **({} if plan.wire else {"Hostname": HOSTNAME}),
        "WorkingDir": plan.workdir,
        # Without an entry point, and so is the image: [""] takes away what the base image may have.
        "Entrypoint": [""],
        "Cmd": ["/bin/sh", "-c", setup_script(plan.wire), "setup", plan.owner, *plan.commands],
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {**plan.labels},
        "HostConfig": {
            "CapDrop": ["ALL"],
            "CapAdd": [*SETUP_CAPABILITIES],
            "SecurityOpt": ["no-new-privileges", f"seccomp={plan.seccomp}"],
            **network_mode(plan.wire),
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "MaskedPaths": [*MASKED_PATHS],
            "ReadonlyPaths": [*READONLY_PATHS],
            "Memory": SETUP_MEMORY_MIB * MIB,
            "MemorySwap": SETUP_MEMORY_MIB * MIB,
            "PidsLimit": SETUP_PIDS,
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": plan.volume,
                    "Target": plan.workdir,
                    "VolumeOptions": {"NoCopy": True},
                }
            ],
            "Runtime": plan.runtime,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_BYTES, "max-file": "1"}},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
        },
    }


def unstarted_spec(image_id: str, labels: Mapping[str, str]) -> dict[str, JsonValue]:
    """The body of the create request of a container that only lends its files."""
    return {
        "Image": image_id,
        "Entrypoint": [""],
        "Cmd": ["/nothing-runs-here"],
        "Labels": {**labels},
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "none"}, "AutoRemove": False},
    }


class DockerImages:
    """Implements `orchestrator.repos.images.ImageResolver` and `SetupRunner`. Owner of its connections: `async with`."""

    def __init__(self, settings: DockerSettings) -> None:
        self._settings = settings
        self._engine = Engine(engine_socket(settings), timeout_s=settings.request_timeout_s)
        self._egress = Egress(settings, self._engine, use=SETUP)
        self._own_images = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._engine.aclose()

    async def image_id(self, reference: str) -> str:
        """The id that `reference` names now. Raises Misconfigured with the fix when it is missing; EngineUnavailable."""
        found = await self._engine.image(reference)
        if found is None:
            words = OWN_IMAGE if reference in base_images.NAMES else PULLED_BY_HAND
            raise Misconfigured(words.format(name=reference))
        return found.id

    async def ensure_base(self, name: str, *, progress: base_images.Progress = lambda _: None) -> str:
        """The id of one of tiltyard's own images, made when it is missing. Raises Misconfigured, StartFailed, EngineUnavailable."""
        async with self._own_images:
            return await base_images.ensure(self._engine, name, progress=progress)

    async def sweep(self) -> int:
        """Remove what set-up runs of a killed process of this host left; how many. Only for whoever holds the host's lock."""
        left = {entry.name for entry in await self._engine.containers(self._labels())}
        left |= set(await self._engine.volumes(self._labels()))
        left |= {entry.labels["tiltyard.sandbox"] for entry in await self._egress.wires()}
        for name in sorted(left):
            await self._discard(name)
        await self._egress.sweep()
        return len(left)

    async def run_setup(
        self,
        *,
        image: str,
        commands: tuple[str, ...],
        tree: Path,
        upper: Path,
        tag: str,
        network: Network,
        timeout_s: float,
        workdir: str = DEFAULT_WORKDIR,
    ) -> str:
        """See `orchestrator.repos.images.SetupRunner`. Raises RepositoryError, Misconfigured, EngineUnavailable."""
        for path in (tree, upper):
            check_state_dir(path)
        image_id = await self.image_id(image)
        name = f"tiltyard-setup-{secrets.token_hex(8)}"
        seccomp = await asyncio.to_thread(profile, self._settings.seccomp_profile)
        try:
            plan = SetupPlan(
                image_id=image_id,
                commands=commands,
                workdir=workdir,
                volume=name,
                wire=await self._egress.join(name, network, hostname=HOSTNAME, labels={}) if network.allow else None,
                owner="" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}",
                seccomp=seccomp,
                runtime=self._settings.runtime,
                labels=self._labels(),
            )
            return await self._run(name, plan, tree=tree, upper=upper, tag=tag, timeout_s=timeout_s)
        except EngineUnavailable:
            raise
        except StartFailed as error:
            raise RepositoryError(f"the set-up container could not run: {error.message}") from error
        finally:
            await finish(self._discard(name))

    async def read_folder(self, image: str, path: str, read: Callable[[BinaryIO], T], *, timeout_s: float) -> T:
        """See `orchestrator.repos.images.ImageFiles`: out of a container that is made and never started."""
        name = f"tiltyard-setup-{secrets.token_hex(8)}"
        image_id = await self.image_id(image)
        try:
            await self._engine.create(name, unstarted_spec(image_id, self._labels()))
            return await self._engine.read_archive(name, path, read, deadline=time.monotonic() + timeout_s)
        except EngineUnavailable:
            raise
        except StartFailed as error:
            raise RepositoryError(f"the image's files could not be read: {error.message}") from error
        finally:
            await finish(self._discard(name))

    def _labels(self) -> dict[str, str]:
        return {**owner_labels(self._settings.deployment, self._settings.host_id), ROLE: "setup"}

    async def _run(self, name: str, plan: SetupPlan, *, tree: Path, upper: Path, tag: str, timeout_s: float) -> str:
        overlay = f"lowerdir={tree},upperdir={upper},workdir={upper.with_name('work')},redirect_dir=on"
        options = {"type": "overlay", "device": "overlay", "o": f"nosuid,nodev,{overlay}"}
        await self._engine.create_volume(name, options, plan.labels)
        await self._engine.create(name, setup_spec(plan))
        await self._engine.start(name)
        try:
            state = await self._engine.wait_exit(name, deadline=time.monotonic() + timeout_s)
        except TimeoutError:
            raise RepositoryError(await self._report(plan, f"did not end within {timeout_s:g} s")) from None
        if state is None:
            raise RepositoryError("the set-up container was removed while it ran: try again")
        if state.exit_code:
            raise RepositoryError(await self._report(plan, f"failed with status {state.exit_code}"))
        repository, _, label = tag.rpartition(":")
        return await self._engine.commit(
            name, repository=repository or tag, tag=label if repository else "latest", labels={ROLE: "task-image"}
        )

    async def _report(self, plan: SetupPlan, what: str) -> str:
        tail = await self._engine.log_tail(plan.volume, LOG_LINES)
        tried = await self._egress.cut(plan.volume) or ()
        refused = [f"{each.host}:{each.port}" for each in tried if not each.allowed]
        hosts = f"; setup_network refused them {', '.join(refused[:10])}" if refused else ""
        if plan.wire is None:
            hosts = "; they had no network, since the task has no setup_network"
        return f"the task's set-up commands {what}{hosts}; the end of their output:\n{tail[-4000:]}"

    async def _discard(self, name: str) -> None:
        """Container first, then its volume and network; what fails is logged and left to the sweeper, which finds it by label."""
        for remove in (self._engine.remove, self._engine.remove_volume, self._egress.leave):
            try:
                await remove(name)
            except TiltyardError as error:
                log.error("set-up container %s is left behind: %s", name, error.message)
