"""Pods beside bare pods, beside agent-sandbox and beside the docker backend, on one cluster, in one run: `python -m benchmarks.kubernetes`.

`KUBECONFIG` is a host's. `TILTYARD_BENCH_ADMIN` names a kubeconfig that may use agent-sandbox there; without it the peer is left out, and its
budgets with it. Docker's calls are left out where there is no engine. The page's table is renewed by a whole run alone.
"""

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kubernetes.aio import client as k8s

from benchmarks import kubernetes_peer
from benchmarks.__main__ import keep, renew_page, table
from benchmarks.measure import Budget, Sample, interleaved, timed
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from orchestrator.cli.wiring import engine
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import CallKey, Epoch, JobId, Limits, OpId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import Exec, ExecResult
from orchestrator.settings import load_settings

IMAGE = "tiltyard/python:3.11"
COLD = SandboxSpec(image=IMAGE, template=None, limits=Limits(memory_mib=64, cpus=0.5, disk_mib=32))
SMALL = SandboxSpec(image=IMAGE, template=None, limits=Limits(memory_mib=64, cpus=0.04, disk_mib=32))
TINY = SandboxSpec(image=IMAGE, template=None, limits=Limits(memory_mib=32, cpus=0.005, disk_mib=8))
STARTS, CLAIMS, AT_ONCE, CALLS, MANY = 12, 10, 20, 300, 200
STARTING = 12
SETTLE_S = 2.5
NAMESPACE = "tiltyard-sandboxes"
TIMEOUT_S = 600.0
MARKS = ("<!-- measured on a cluster: start -->", "<!-- measured on a cluster: end -->")


async def lease(box: Sandbox) -> None:
    await box.lease(RolloutKey(job=JobId("bench"), trace_id=TraceId(box.id)), Epoch(1))


@asynccontextmanager
async def backend(folder: Path, **changes: object) -> AsyncIterator[KubernetesBackend]:
    settings = KubernetesSettings(
        deployment=f"bench-{secrets.token_hex(3)}",
        host_id="bench",
        state_dir=folder,
        **changes,  # type: ignore[arg-type]
    )
    async with KubernetesBackend(settings) as made:
        try:
            yield made
        finally:
            await asyncio.gather(*(made.destroy(box.id) for box in await made.owned()))


async def made(pods: KubernetesBackend, spec: SandboxSpec) -> SandboxId:
    name = SandboxId(f"c-{secrets.token_hex(4)}")
    await lease(await pods.create(name, spec, deadline=time.monotonic() + TIMEOUT_S))
    return name


def bare(core: k8s.CoreV1Api, pods: list[str]) -> Callable[[], Awaitable[None]]:
    """A pod of the same image and resources that sleeps, looked at until it is Ready."""

    async def once() -> None:
        name = f"bare-{secrets.token_hex(4)}"
        amounts = {"cpu": "500m", "memory": "64Mi"}
        container = k8s.V1Container(
            name="c",
            image=IMAGE,
            command=["sleep", "600"],
            resources=k8s.V1ResourceRequirements(requests=amounts, limits=amounts),
        )
        spec = k8s.V1PodSpec(
            containers=[container],
            restart_policy="Never",
            termination_grace_period_seconds=1,
            automount_service_account_token=False,
        )
        pods.append(name)
        await core.create_namespaced_pod(NAMESPACE, k8s.V1Pod(metadata=k8s.V1ObjectMeta(name=name), spec=spec))
        while True:
            pod = await core.read_namespaced_pod(name, NAMESPACE)
            conditions = (pod.status.conditions or []) if pod.status else []
            if any(condition.type == "Ready" and condition.status == "True" for condition in conditions):
                break
            await asyncio.sleep(0.01)

    return once


async def starts(folder: Path) -> tuple[list[Budget], list[Sample]]:
    """One box at a time, alternating with a bare pod; both are gone before the next begins."""
    boxes: list[SandboxId] = []
    bare_pods: list[str] = []
    async with backend(folder) as pods:
        core = k8s.CoreV1Api(pods.api.client)

        async def cold() -> None:
            boxes.append(await made(pods, COLD))

        async def clear() -> None:
            for name in bare_pods:
                await core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=1)
            for box in boxes:
                await pods.destroy(box)
            bare_pods.clear()
            boxes.clear()
            await asyncio.sleep(SETTLE_S)

        writes = pods.api.writes
        contenders = [("bare pod", bare(core, bare_pods)), ("cold box", cold)]
        samples = await interleaved(contenders, runs=STARTS, warmup=1, between=clear)
        per_rollout = (pods.api.writes - writes) / (STARTS + 1)
    ratio = samples["cold box"].p50 / samples["bare pod"].p50
    return [
        Budget(
            name="cold box as a pod", value=ratio, limit=1.15, unit="x", baseline="bare pod of the same image, to Ready"
        ),
        Budget(
            name="API writes of a cold rollout's life", value=per_rollout, limit=3, unit="", baseline="requests counted"
        ),
    ], list(samples.values())


async def claimed(pods: KubernetesBackend) -> tuple[float, SandboxId]:
    """From the wish to the lease."""
    began = time.perf_counter()
    name = pods.claim(SMALL)
    assert name is not None, "a warm box to be there"
    await lease(await pods.create(name, SMALL, deadline=time.monotonic() + TIMEOUT_S))
    return time.perf_counter() - began, name


async def full(pods: KubernetesBackend, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while pods.warm.ready(SMALL) < count:
        assert time.monotonic() < deadline, "warm boxes in time"
        await asyncio.sleep(0.2)


async def our_claims(folder: Path) -> tuple[Budget, list[Sample]]:
    """One after another, then twenty at once, the pool full before each."""
    async with backend(folder, warm_boxes=AT_ONCE) as pods:
        pods.warm.want(SMALL)
        await full(pods, AT_ONCE)
        writes = pods.api.writes
        single = [await claimed(pods) for _ in range(CLAIMS)]
        await full(pods, AT_ONCE)
        together = await asyncio.gather(*(claimed(pods) for _ in range(AT_ONCE)))
        await full(pods, AT_ONCE)
        for _, name in (*single, *together):
            await pods.destroy(name)
        per_rollout = (pods.api.writes - writes) / (CLAIMS + AT_ONCE)
    return Budget(
        name="API writes of a warm rollout's life", value=per_rollout, limit=3, unit="", baseline="requests counted"
    ), [
        Sample(name="warm claim, one after another", seconds=tuple(took for took, _ in single)),
        Sample(name=f"warm claim, {AT_ONCE} at once", seconds=tuple(took for took, _ in together)),
    ]


async def peers_claims(admin: Path) -> list[Sample]:
    resources = {"cpu": "40m", "memory": "64Mi"}
    single, together = await kubernetes_peer.claims(admin, IMAGE, resources, CLAIMS, AT_ONCE)
    return [
        Sample(name="agent-sandbox claim, one after another", seconds=tuple(single)),
        Sample(name=f"agent-sandbox claim, {AT_ONCE} at once", seconds=tuple(together)),
    ]


async def warm_claims(folder: Path, admin: Path | None) -> tuple[list[Budget], list[Sample]]:
    """Ours, then the peer's alike."""
    writes, ours = await our_claims(folder)
    peers = await peers_claims(admin) if admin is not None else []
    faster = [
        Budget(
            name=f"{mine.name}, faster by",
            value=theirs.p50 / mine.p50,
            limit=8,
            unit="x",
            baseline="agent-sandbox",
            at_least=True,
        )
        for mine, theirs in zip(ours, peers, strict=False)
    ]
    return [writes, *faster], [*ours, *peers]


async def calls(name: str, box: Sandbox) -> Sample:
    numbers = iter(range(10_000))

    async def once() -> None:
        number = next(numbers)
        call = PendingCall(key=CallKey(f"k{number}"), sequence=number + 1, tool="shell", arguments={}, operations=0)
        op = Exec(argv=("true",), timeout_s=10)
        await box.run(op, op_id=OpId(call=call.key, number=0), deadline=time.monotonic() + 20, call=call)
        await box.acknowledge([call.key])

    return await timed(name, once, runs=CALLS)


async def tool_calls(folder: Path) -> tuple[list[Budget], list[Sample]]:
    spec = SandboxSpec(image=IMAGE, template=None, limits=Limits())
    async with backend(folder) as pods:
        box = await pods.create(SandboxId("calls"), spec, deadline=time.monotonic() + TIMEOUT_S)
        await lease(box)
        ours = await calls("call `true` in a pod", box)
    if not shutil.which("docker"):
        return [], [ours]
    async with engine(load_settings(deployment="bench", state_dir=folder / "docker", accept_old_runc=True)) as docker:
        box = await docker.backend.create(SandboxId("calls"), spec, deadline=time.monotonic() + TIMEOUT_S)
        try:
            await lease(box)
            theirs = await calls("call `true` in a docker box", box)
        finally:
            await box.aclose()
            await docker.backend.destroy(box.id)
    ratio = ours.p50 / theirs.p50
    return [Budget(name="a call in a pod", value=ratio, limit=1.5, unit="x", baseline="docker backend")], [ours, theirs]


async def answers(box: Sandbox) -> bool:
    call = PendingCall(key=CallKey("alive"), sequence=1, tool="shell", arguments={}, operations=0)
    op = Exec(argv=("true",), timeout_s=30)
    result = await box.run(op, op_id=OpId(call=call.key, number=0), deadline=time.monotonic() + 60, call=call)
    return isinstance(result, ExecResult) and result.exit_code == 0


async def many(folder: Path) -> tuple[list[Budget], list[Sample]]:
    """So many boxes alive at once, each answering; a node takes 110 pods unless its kubelet is told otherwise (KUBE_MAX_PODS)."""
    slots = asyncio.Semaphore(STARTING)
    async with backend(folder, max_boxes=MANY) as pods:

        async def one() -> float:
            async with slots:
                began = time.perf_counter()
                name = SandboxId(f"m-{secrets.token_hex(4)}")
                box = await pods.create(name, TINY, deadline=time.monotonic() + TIMEOUT_S)
                await lease(box)
                boxes.append(box)
                return time.perf_counter() - began

        boxes: list[Sandbox] = []
        seconds = await asyncio.gather(*(one() for _ in range(MANY)))
        alive = sum(await asyncio.gather(*(answers(box) for box in boxes)))
    return [
        Budget(name="boxes alive on one node", value=alive, limit=MANY, unit="", baseline="each asked", at_least=True)
    ], [Sample(name=f"start of {MANY} boxes, {STARTING} at a time", seconds=tuple(seconds))]


async def measure(folder: Path, admin: Path | None) -> tuple[list[Budget], list[Sample]]:
    found = []
    for title, part in (
        ("starts", starts(folder)),
        ("warm claims", warm_claims(folder, admin)),
        ("calls", tool_calls(folder)),
        (f"{MANY} boxes", many(folder)),
    ):
        print(title, flush=True)
        found.append(await part)
    return [b for budgets, _ in found for b in budgets], [s for _, samples in found for s in samples]


def main() -> int:
    admin = os.environ.get("TILTYARD_BENCH_ADMIN")
    with tempfile.TemporaryDirectory(prefix="ty-bench-") as folder:
        budgets, samples = asyncio.run(measure(Path(folder), Path(admin) if admin else None))
    keep(budgets, samples)
    text = table(budgets, samples)
    if admin and shutil.which("docker"):
        renew_page(text, MARKS)
    print(text)
    return 0 if all(budget.met for budget in budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
