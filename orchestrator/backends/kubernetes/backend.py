"""Makes and unmakes boxes as pods of a Kubernetes cluster. A pod outlives the host that made it: any host of the deployment may take it over."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from kubernetes.aio import client as k8s

from orchestrator.agent.client import AgentClient
from orchestrator.agent.tokens import TokenSigner, load_signer
from orchestrator.agent.transport import TcpEndpoint
from orchestrator.backends.finish import finish
from orchestrator.backends.kubernetes.agent_image import agent_image_reference
from orchestrator.backends.kubernetes.api import Api, QuotaFull, Refused, opening_refusal, start_refusal
from orchestrator.backends.kubernetes.ends import classify_end, slow_start, start_failure
from orchestrator.backends.kubernetes.facts import PodFacts, facts_of
from orchestrator.backends.kubernetes.forwards import Forwards
from orchestrator.backends.kubernetes.informer import PodInformer
from orchestrator.backends.kubernetes.pods import (
    DEPLOYMENT,
    GVISOR_CLASSES,
    HOST,
    IN_USE,
    ROLE,
    STATE,
    WARM,
    Owner,
    PodPlan,
    check_spec,
    make_pod,
    pod_name,
    uid_block,
)
from orchestrator.backends.kubernetes.seeds import delivery
from orchestrator.backends.kubernetes.settings import AGENT_PORT, KubernetesSettings
from orchestrator.backends.kubernetes.warm import WarmPods
from orchestrator.errors import EngineUnavailable, Misconfigured, SandboxError, SandboxLost, StartFailed, TiltyardError
from orchestrator.interfaces import Capacity, OwnedSandbox, Sandbox, SandboxSpec, Scope, Template
from orchestrator.models import HostId, SandboxId

log = logging.getLogger(__name__)

END_GRACE_S = 20.0
"""From an agent's silence to the cluster's note of its end: a second or two; more where a node is busy. Blame rests on it."""
FORCE_AFTER_S = 10.0
"""A pod whose node does not confirm its end is taken out of the record without it: the node is gone, or removes it when it is back."""
GONE_S = 10.0
REASON_S = 0.2
"""A start gives up so much before its time is over, to tell why."""
GVISOR_LOG = "Starting gVisor"


class KubernetesBackend:
    """Implements `orchestrator.interfaces.SandboxBackend` and `WarmBoxes`; owner of its connections and its watch: `async with`.

    Boxes live on after `aclose()`, but for warm ones that nobody has claimed.
    """

    name = "kubernetes"
    scope = Scope.DEPLOYMENT

    def __init__(
        self,
        settings: KubernetesSettings,
        *,
        pod: Callable[[PodPlan, KubernetesSettings], k8s.V1Pod] = make_pod,
    ) -> None:
        """`pod` makes the manifest from a plan. Tests weaken it, to see the suite turn red."""
        self._settings = settings
        self._make_pod = pod
        self._slots = asyncio.Semaphore(settings.start_slots)
        self._delivery = delivery(settings)
        self.warm = WarmPods(settings.warm_boxes, self._make_warm, self._remove)
        self._clients: dict[SandboxId, AgentClient] = {}
        self._ends: dict[str, TiltyardError] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._forwards: Forwards | None = None
        self._opened: tuple[Api, PodInformer, TokenSigner, Owner] | None = None

    async def __aenter__(self) -> Self:
        """Raises Misconfigured (no cluster, no permission), EngineUnavailable."""
        settings = self._settings
        signer = await asyncio.to_thread(load_signer, settings.key_file)
        api = await Api.open(settings)
        informer = PodInformer(api, f"{DEPLOYMENT}={settings.deployment},{ROLE}=box", self._changed)
        try:
            owner = await api.owner()
            await informer.start()
        except Refused as error:
            await api.aclose()
            raise opening_refusal(error, settings.namespace) from error
        except BaseException:
            await api.aclose()
            raise
        self._opened = api, informer, signer, owner
        if settings.port_forward:
            self._forwards = Forwards(api.client.configuration, settings.namespace)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Idempotent."""
        if self._opened is None:
            return
        api, informer, _, _ = self._opened
        await self.warm.aclose()
        await informer.aclose()
        for client in list(self._clients.values()):
            await client.aclose()
        if self._closing:
            await asyncio.wait(self._closing)
        if self._forwards is not None:
            await self._forwards.aclose()
        await self._delivery.aclose()
        await api.aclose()
        self._opened = None

    @property
    def api(self) -> Api:
        return self._parts()[0]

    @property
    def informer(self) -> PodInformer:
        return self._parts()[1]

    def _parts(self) -> tuple[Api, PodInformer, TokenSigner, Owner]:
        if self._opened is None:
            raise EngineUnavailable("the kubernetes backend is not open")
        return self._opened

    # ---- the seam

    async def create(self, sandbox_id: SandboxId, spec: SandboxSpec, *, deadline: float) -> Sandbox:
        """See SandboxBackend; a claimed box is there already. Whatever fails, nothing of the box is left behind."""
        check_spec(sandbox_id, spec, self._settings)
        ready = self.warm.taken(sandbox_id)
        if ready is not None:
            self._note_use(sandbox_id)
            return ready
        if not spec.grader:
            self.warm.want(spec)
        try:
            async with asyncio.timeout_at(deadline), self._slots:
                return await self._start(sandbox_id, spec, IN_USE, deadline - REASON_S)
        except TimeoutError:
            raise StartFailed("the box did not come up in time; the cluster may be busy: try again") from None

    def claim(self, spec: SandboxSpec) -> SandboxId | None:
        """See WarmBoxes."""
        return self.warm.claim(spec) if self._settings.warm_boxes and not spec.grader else None

    async def attach(self, sandbox_id: SandboxId) -> Sandbox:
        """A box made earlier, by whichever host. Raises SandboxLost, SandboxDead, EngineUnavailable."""
        pod = self.informer.pods.get(pod_name(sandbox_id)) or await self._look(sandbox_id)
        if pod is None or not pod.reachable:
            raise self._ends.get(pod_name(sandbox_id)) or classify_end(pod)
        return self._client(sandbox_id, pod.ip)

    async def destroy(self, sandbox_id: SandboxId) -> None:
        """Idempotent; begun, it goes to its end. Raises EngineUnavailable, SandboxError (held by somebody's finalizer: try again)."""
        await finish(self._remove(sandbox_id))

    async def owned(self) -> Sequence[OwnedSandbox]:
        """Every box of this deployment, whichever host made it, but for the warm ones that this process keeps itself."""
        kept = self.warm.kept
        return [
            OwnedSandbox(
                id=SandboxId(pod.sandbox),
                created_at=pod.created_at,
                running=pod.reachable,
                host=HostId(pod.labels.get(HOST, "")),
            )
            for pod in sorted(self.informer.pods.values(), key=lambda pod: pod.name)
            if pod.sandbox not in kept
        ]

    async def capacity(self) -> Capacity:
        """What all boxes together may be promised: the namespace's quota, else what the nodes have."""
        memory_mib = self._settings.memory_limit_mib
        try:
            memory_mib = memory_mib or await self.api.quota_memory_mib() or await self.api.nodes_memory_mib()
        except Refused as error:
            raise opening_refusal(error, self._settings.namespace) from error
        return Capacity(memory_mib=memory_mib, boxes=self._settings.max_boxes, start_slots=self._settings.start_slots)

    # ---- making

    async def _make_warm(self, sandbox_id: SandboxId, spec: SandboxSpec) -> AgentClient:
        deadline = time.monotonic() + self._settings.start_s
        async with asyncio.timeout_at(deadline):
            return await self._start(sandbox_id, spec, WARM, deadline)

    async def _start(self, sandbox_id: SandboxId, spec: SandboxSpec, state: str, deadline: float) -> AgentClient:
        try:
            return await self._started(sandbox_id, spec, state, deadline)
        except _NotStored:
            raise
        except SandboxLost as error:
            await finish(self._abandon(sandbox_id))
            raise StartFailed(f"the box did not start: {error.message}") from error
        except BaseException:
            await finish(self._abandon(sandbox_id))
            raise

    async def _started(self, sandbox_id: SandboxId, spec: SandboxSpec, state: str, deadline: float) -> AgentClient:
        if spec.template is not None:
            spec = replace(spec, image=await self._delivery.image(spec.image, spec.template, spec.workdir))
        await self._store_pod(sandbox_id, spec, state, deadline)
        by = min(deadline, time.monotonic() + self._settings.start_s)
        pod = await self._placed(sandbox_id, by)
        client = self._client(sandbox_id, pod.ip)
        work = asyncio.ensure_future(self._prepare(client, spec.template, by, deadline))
        ended = asyncio.ensure_future(
            self.informer.until(pod.name, lambda found: bool(start_failure(found)), deadline=deadline + 60)
        )
        try:
            await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise StartFailed(start_failure(self.informer.pods.get(pod.name)))
            await work
        except TimeoutError:
            raise StartFailed(slow_start(self.informer.pods.get(pod.name))) from None
        finally:
            for task in (work, ended):
                task.cancel()
            await asyncio.wait({work, ended})
        return client

    async def _prepare(self, client: AgentClient, template: Template | None, by: float, deadline: float) -> None:
        """`by`: when it must answer, `deadline`: when it must have its repository, both of this process's monotonic clock."""
        health = await client.wait_ready(deadline=by)
        if self._settings.runtime_class in GVISOR_CLASSES and GVISOR_LOG not in health.kernel.log:
            raise Misconfigured(
                f"RuntimeClass {self._settings.runtime_class!r} is not what its name says: "
                f"a box runs on {health.kernel.version!r}, which is no gVisor"
            )
        if template is not None:
            await self._delivery.seed(client, template, deadline)

    async def _store_pod(self, sandbox_id: SandboxId, spec: SandboxSpec, state: str, deadline: float) -> None:
        api, informer, signer, owner = self._parts()
        plan = PodPlan(
            sandbox_id=sandbox_id,
            spec=spec,
            agent_image=self._settings.agent_image or agent_image_reference(),
            public_key_b64=signer.public_key_b64,
            uid_base=uid_block(secrets.randbits(64)),
            owner=owner,
            state=state,
        )
        pod = self._make_pod(plan, self._settings)
        try:
            stored = await api.create_pod(pod, deadline=deadline)
        except Refused as error:
            refusal = start_refusal(error)
            if error.status == 409:
                raise _NotStored(f"box {sandbox_id} exists already") from error
            if not isinstance(refusal, QuotaFull) or state == WARM or not await self.warm.give_way():
                raise refusal from error
            stored = await api.create_pod(pod, deadline=deadline)
        await informer.heard(facts_of(stored))

    async def _placed(self, sandbox_id: SandboxId, deadline: float) -> PodFacts:
        """The pod, once it has an address: its agent answers up to a second before the cluster tells that it runs. A cluster without room is given
        our warm boxes' first."""
        name = pod_name(sandbox_id)

        def settled(pod: PodFacts | None) -> bool:
            return bool(start_failure(pod)) or bool(pod and pod.ip)

        full = asyncio.ensure_future(
            self.informer.until(name, lambda pod: settled(pod) or bool(pod and pod.unschedulable), deadline=deadline)
        )
        try:
            pod = await full
            if pod is not None and pod.unschedulable and not settled(pod):
                await self.warm.give_way()
                pod = await self.informer.until(name, settled, deadline=deadline)
        except TimeoutError:
            raise StartFailed(slow_start(self.informer.pods.get(name))) from None
        if reason := start_failure(pod):
            raise StartFailed(reason)
        assert pod is not None  # else it has failed
        return pod

    def _client(self, sandbox_id: SandboxId, ip: str) -> AgentClient:
        signer, forwards = self._parts()[2], self._forwards
        endpoint = TcpEndpoint(
            host=ip,
            port=AGENT_PORT,
            token=lambda epoch: signer.token(sandbox_id, epoch),
            connect=None if forwards is None else lambda: forwards.connector(pod_name(sandbox_id)),
        )
        client = AgentClient(sandbox_id, endpoint, explain_loss=lambda: self._explain_loss(sandbox_id))
        self._clients[sandbox_id] = client
        return client

    def _note_use(self, sandbox_id: SandboxId) -> None:
        """The label follows the claim, for whoever lists pods; nothing rests on it."""
        patch = {"metadata": {"labels": {STATE: IN_USE}}}

        async def follow() -> None:
            try:
                await self.api.patch_pod(pod_name(sandbox_id), patch)
            except (Refused, EngineUnavailable) as error:
                log.info("the label of box %s did not follow: %s", sandbox_id, error)

        self._beside(follow())

    # ---- ends

    def _changed(self, before: PodFacts | None, pod: PodFacts | None) -> None:
        """Whoever waits for a box whose pod ended is told at once: nobody answers on its wire any more, and nothing else would say so."""
        known = pod or before
        if known is None or (pod is not None and not (pod.over or pod.deleting)):
            return
        if pod is not None:
            self._ends.setdefault(pod.name, classify_end(pod))
        sandbox_id = SandboxId(known.sandbox)
        if client := self._clients.pop(sandbox_id, None):
            self._beside(client.aclose())
        if pod is None:
            self.warm.lost(sandbox_id)
            if self._forwards is not None:
                self._beside(self._forwards.forget(known.name))

    def _beside(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _explain_loss(self, sandbox_id: SandboxId) -> TiltyardError:
        """Why a box does not answer. The agent's silence comes a moment before the cluster knows of its end."""
        name = pod_name(sandbox_id)
        try:
            pod = await self.informer.until(
                name, lambda pod: pod is None or pod.over or pod.deleting, deadline=time.monotonic() + END_GRACE_S
            )
        except TimeoutError:
            pod = self.informer.pods.get(name)
        except EngineUnavailable as error:
            return error
        return self._ends.get(name) or classify_end(pod)

    async def _remove(self, sandbox_id: SandboxId) -> None:
        name = pod_name(sandbox_id)
        client = self._clients.pop(sandbox_id, None)
        if client is not None:
            await client.aclose()
        try:
            await self.api.delete_pod(name)
            if not await self._gone(name, FORCE_AFTER_S):
                log.warning("the node of box %s does not confirm its end; it is removed without it", sandbox_id)
                await self.api.delete_pod(name, grace_s=0)
                if not await self._gone(name, GONE_S):
                    held = getattr(self.informer.pods.get(name), "finalizers", ())
                    raise SandboxError(f"the box's pod does not go; it is held by: {', '.join(held) or 'nobody named'}")
        except Refused as error:
            raise SandboxError(f"the cluster does not remove the box's pod: {error}") from error
        self._ends.pop(name, None)
        if self._forwards is not None:
            await self._forwards.forget(name)

    async def _gone(self, name: str, within_s: float) -> bool:
        if name not in self.informer.pods:
            return await self._look(SandboxId(name.removeprefix(pod_name(SandboxId(""))))) is None
        try:
            await self.informer.until(name, lambda pod: pod is None, deadline=time.monotonic() + within_s)
        except TimeoutError:
            return False
        return True

    async def _look(self, sandbox_id: SandboxId) -> PodFacts | None:
        """One pod as the API server has it now: the watch may be a moment behind another host's doings."""
        try:
            found = await self.api.read_pod(pod_name(sandbox_id))
        except Refused as error:
            raise SandboxError(f"the cluster does not show the box's pod: {error}") from error
        if found is None:
            return None
        pod = facts_of(found)
        return pod if pod.labels.get(DEPLOYMENT) == self._settings.deployment else None

    async def _abandon(self, sandbox_id: SandboxId) -> None:
        """Remove what a failed start left; what cannot be removed now is the sweeper's, who finds it by name."""
        try:
            await self._remove(sandbox_id)
        except TiltyardError as error:
            log.error("box %s is left behind after a failed start: %s", sandbox_id, error.message)


class _NotStored(StartFailed):
    """Nothing was made, and what has the name is somebody's."""
