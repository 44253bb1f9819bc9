"""Boxes joined to the proxy of their allow-list, cut off from it, and taken away; proxies made on demand and ended with their last box."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.backends.docker.base_images import EGRESS
from orchestrator.backends.docker.egress import namespaces, notes, plans
from orchestrator.backends.docker.egress.plans import ProxyPlan
from orchestrator.backends.docker.engine import Engine
from orchestrator.backends.docker.facts import ContainerState, ListedContainer
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.backends.docker.spec import ROLE, Wire, container_name, owner_labels
from orchestrator.backends.finish import finish
from orchestrator.backends.seccomp import profile, with_routes
from orchestrator.egress import attempts, names
from orchestrator.errors import EngineUnavailable, Misconfigured, SandboxLost, StartFailed, TiltyardError
from orchestrator.models import Network, NetworkAttempt, SandboxId

log = logging.getLogger(__name__)

BOXES, SETUP = "boxes", "setup"
"""Uses."""
PROXY, WIRE = "egress", "egress-wire"
"""Roles: a proxy; a holder of a box's network namespace."""
PROXY_LABEL, CONTAINER_LABEL, NUMBER_LABEL, USE_LABEL, BOX_LABEL = (
    "tiltyard.egress.proxy",
    "tiltyard.egress.container",
    "tiltyard.egress.number",
    "tiltyard.egress.use",
    "tiltyard.sandbox",
)
NO_UPLINKS = ("host", "null")
"""Drivers of the engine's networks `host` and `none`."""
READY_S = 30.0
READY_LOOK_S = 0.05


class Egress:
    """Of one use (boxes, set-up commands) of one host: proxies of two uses are never the same. The engine connection stays its maker's."""

    def __init__(self, settings: DockerSettings, engine: Engine, *, use: str) -> None:
        self._settings = settings
        self._engine = engine
        self._use = use
        self._labels = {**owner_labels(settings.deployment, settings.host_id), USE_LABEL: use}
        self._folder = settings.state_dir / "egress"
        self._changing = asyncio.Lock()
        """Proxies are made, taken into use and ended one at a time."""

    async def check(self) -> None:
        """Raises Misconfigured where no box can have a network, with what to do; EngineUnavailable."""
        if os.geteuid() != 0:
            raise Misconfigured(
                "a network allow-list needs a server that runs as root: it wires the boxes' network namespaces"
            )
        if missing := namespaces.missing_commands():
            raise Misconfigured(
                f"a network allow-list needs {', '.join(missing)}: apt-get install iproute2 util-linux iptables"
            )
        if self._settings.egress_network:
            await self._check_uplink(self._settings.egress_network)
        await self._image()

    async def _check_uplink(self, name: str) -> None:
        """A proxy's firewall and wires are made in the namespace it runs in: that must never be this machine's."""
        driver = await self._engine.network_driver(name)
        if driver is None:
            raise Misconfigured(
                f"TILTYARD_EGRESS_NETWORK names {name!r}, which the engine does not have: `docker network create {name}`, or leave it empty"
            )
        if driver in NO_UPLINKS:
            raise Misconfigured(
                f"TILTYARD_EGRESS_NETWORK names {name!r}, which is no network of the proxies' own: name a bridge, or leave it empty"
            )

    async def join(self, owner: str, network: Network, *, hostname: str, labels: Mapping[str, str]) -> Wire:
        """A namespace wired to the proxy of `network`. What fails leaves nothing of `owner`.

        Raises Misconfigured, StartFailed, EngineUnavailable.
        """
        try:
            names.check(network)
        except ValueError as error:
            raise Misconfigured(f"network: {error}") from error
        await self.check()
        try:
            return await self._join(owner, network, hostname, labels)
        except OSError as error:
            await finish(self._abandon(owner))
            raise StartFailed(f"the network's files could not be written: {error.strerror}") from error
        except BaseException:
            await finish(self._abandon(owner))
            raise

    async def cut(self, owner: str) -> Sequence[NetworkAttempt] | None:
        """See `interfaces.EgressControl`; None of an owner without a wire. Raises also StartFailed (this machine could not: try again)."""
        holder = await self._holder(owner)
        if holder is None:
            return None
        labels = holder.labels
        folder, number = self._folder / labels[PROXY_LABEL], int(labels[NUMBER_LABEL])
        if not await asyncio.to_thread(notes.is_cut, folder, number):
            proxy = await self._engine.inspect(plans.proxy_name(labels[PROXY_LABEL]))
            if proxy is None or proxy.id != labels[CONTAINER_LABEL] or not proxy.running or not holder.running:
                raise SandboxLost("the box's network broke: its proxy ended")
            await namespaces.disconnect(await self._namespace(proxy.id), plans.proxy_end(number))
            await asyncio.to_thread(notes.mark_cut, folder, number)
        texts = await asyncio.to_thread(notes.read, folder, number)
        return attempts.read(await asyncio.to_thread(notes.network_of, folder), *texts)

    async def leave(self, owner: str) -> None:
        """Remove what `owner` had, and its proxy where no other uses it. Idempotent. Raises EngineUnavailable."""
        holder = await self._holder(owner)
        if holder is None:
            return
        async with self._changing:
            await self._engine.remove(holder.id)
            key, number = holder.labels[PROXY_LABEL], int(holder.labels[NUMBER_LABEL])
            await asyncio.to_thread(notes.forget, self._folder / key, number)
            await self._end_unused()

    async def _abandon(self, owner: str) -> None:
        """What a failed `join` made, the proxy included; what cannot be removed now is the sweeper's."""
        with suppress(TiltyardError):
            await self.leave(owner)
            await self.sweep()

    async def wires(self) -> Sequence[ListedContainer]:
        """The holders; each names its box in `BOX_LABEL`."""
        return await self._engine.containers({**self._labels, ROLE: WIRE})

    async def sweep(self) -> None:
        """End proxies that no box uses, and remove our own uplink with the last. Raises EngineUnavailable."""
        async with self._changing:
            await self._end_unused()

    async def _join(self, owner: str, network: Network, hostname: str, labels: Mapping[str, str]) -> Wire:
        image = await self._image()
        async with self._changing:
            plan, proxy = await self._proxy(network, image)
            folder = self._folder / plan.key
            number = await asyncio.to_thread(notes.next_number, folder)
            wired = {PROXY_LABEL: plan.key, CONTAINER_LABEL: proxy, NUMBER_LABEL: str(number)}
            own = {**labels, **self._labels, ROLE: WIRE, BOX_LABEL: owner, **wired}
            spec = plans.holder_spec(image, await self._filter(), own, hostname)
            try:
                holder = await self._engine.create(wire_name(owner), spec)
            except BaseException:  # else `leave` gives the number back, which finds it at the holder
                await asyncio.to_thread(notes.forget, folder, number)
                raise
        await self._engine.start(holder)
        box, gate = await self._namespace(holder), await self._namespace(proxy)
        await namespaces.connect(box, plans.WIRE, gate, plans.proxy_end(number))
        await namespaces.configure(gate, plans.wiring_at_proxy(number))
        await namespaces.configure(box, plans.wiring_at_box(number))
        return Wire(container=holder, environment=plans.proxy_environment())

    async def _proxy(self, network: Network, image: str) -> tuple[ProxyPlan, str]:
        """The running proxy of `network`, made if need be; its container's id."""
        plan = ProxyPlan(
            network=network,
            uplink=self._settings.egress_network or await self._own_uplink(),
            dns=self._settings.egress_dns,
            own=await namespaces.own_addresses(),
            owner=self._labels,
            image=image,
        )
        found = await self._engine.inspect(plan.name)
        if found is not None and found.running and await asyncio.to_thread(notes.is_wired, self._folder / plan.key):
            return plan, found.id
        try:
            return plan, await self._make_proxy(plan, found)
        except BaseException:
            await finish(self._end(plan.key))
            raise

    async def _make_proxy(self, plan: ProxyPlan, old: ContainerState | None) -> str:
        if old is not None:
            log.warning("the proxy %s had ended: boxes that used it have lost their network", plan.name)
            await self._engine.remove(old.id)
        folder = self._folder / plan.key
        await asyncio.to_thread(notes.prepare, folder, plan)
        labels = {**self._labels, ROLE: PROXY, PROXY_LABEL: plan.key}
        proxy = await self._engine.create(
            plan.name, plans.proxy_spec(plan, with_routes(await self._filter()), folder, labels)
        )
        await self._engine.start(proxy)
        namespace = await self._namespace(proxy)
        await namespaces.guard(namespace, plans.firewall(plan))
        await namespaces.configure(namespace, plans.proxy_wiring())
        await asyncio.to_thread(notes.mark_wired, folder)
        await self._serving(proxy)
        return proxy

    async def _serving(self, proxy: str) -> None:
        """Returns when squid and dnsmasq listen. Raises StartFailed with the end of their words."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            state = await self._engine.inspect(proxy)
            if state is None or not state.running:
                break
            if await asyncio.to_thread(notes.listens, state.pid):
                return
            await asyncio.sleep(READY_LOOK_S)
        tail = await self._engine.log_tail(proxy, 20)
        raise StartFailed(f"the network's proxy did not come up: {tail[-800:]}")

    async def _end_unused(self) -> None:
        used = {entry.labels.get(PROXY_LABEL) for entry in await self.wires()}
        left = {
            entry.labels.get(PROXY_LABEL, "") for entry in await self._engine.containers({**self._labels, ROLE: PROXY})
        }
        left |= set(await asyncio.to_thread(notes.keys, self._folder, self._use))
        for key in sorted(left - used):
            await self._end(key)
        if not used:
            await self._remove_own_uplink()

    async def _end(self, key: str) -> None:
        proxy = await self._engine.inspect(plans.proxy_name(key))
        if proxy is not None:
            await self._engine.remove(proxy.id)
        await asyncio.to_thread(shutil.rmtree, self._folder / key, ignore_errors=True)

    async def _own_uplink(self) -> str:
        name = plans.uplink_name(self._settings.deployment, self._settings.host_id, self._use)
        if not await self._engine.has_network(name):
            await self._engine.create_network(name, self._labels)
        return name

    async def _remove_own_uplink(self) -> None:
        """Also where another is set now. While somebody else's container is on it, it stays."""
        name = plans.uplink_name(self._settings.deployment, self._settings.host_id, self._use)
        if await self._engine.has_network(name):
            try:
                await self._engine.remove_network(name)
            except EngineUnavailable:
                raise
            except StartFailed as error:
                log.warning("the network %s stays: %s", name, error.message)

    async def _holder(self, owner: str) -> ContainerState | None:
        """Ours alone: a container of that name with other labels is nobody's business of ours."""
        state = await self._engine.inspect(wire_name(owner))
        if state is None or any(state.labels.get(key) != value for key, value in {**self._labels, ROLE: WIRE}.items()):
            return None
        return state

    async def _namespace(self, container: str) -> Path:
        path = await self._engine.namespace(container)
        if path is None or not await asyncio.to_thread(path.exists):
            raise StartFailed("the engine shows no network namespace of a container; does it run on this machine?")
        return path

    async def _filter(self) -> str:
        return await asyncio.to_thread(profile, self._settings.seccomp_profile)

    async def _image(self) -> str:
        image = await self._engine.image(EGRESS)
        if image is None:
            raise Misconfigured(
                f"a network allow-list needs the image {EGRESS}: make it with `make images`, or sandbox_images/build"
            )
        return image.id


def wire_name(owner: str) -> str:
    return container_name(SandboxId(owner)) + "-net"
