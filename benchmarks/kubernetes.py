"""Pods beside bare pods of the same image, on one cluster, in one run: `python -m benchmarks.kubernetes` over the current context."""

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from kubernetes.aio import client as k8s

from benchmarks.measure import Sample, interleaved, timed
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from orchestrator.interfaces import Sandbox, SandboxSpec
from orchestrator.models import CallKey, Epoch, JobId, Limits, OpId, PendingCall, RolloutKey, SandboxId, TraceId
from orchestrator.operations import Exec

IMAGE = "tiltyard/python:3.11"
SPEC = SandboxSpec(image=IMAGE, template=None, limits=Limits(memory_mib=64, cpus=0.5, disk_mib=32))
STARTS, CLAIMS, AT_ONCE, CALLS = 8, 10, 20, 200
TIMEOUT_S = 180.0


async def lease(box: Sandbox) -> None:
    await box.lease(RolloutKey(job=JobId("bench"), trace_id=TraceId(box.id)), Epoch(1))


def cold(backend: KubernetesBackend) -> Callable[[], Awaitable[None]]:
    async def once() -> None:
        name = SandboxId(f"c-{secrets.token_hex(4)}")
        await lease(await backend.create(name, SPEC, deadline=time.monotonic() + TIMEOUT_S))
        made.append(name)

    made: list[SandboxId] = []
    once.made = made  # type: ignore[attr-defined]
    return once


def bare(backend: KubernetesBackend) -> Callable[[], Awaitable[None]]:
    """A pod of the same image and resources that sleeps, to Ready."""
    core = k8s.CoreV1Api(backend.api.client)

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
        namespace = backend._settings.namespace
        await core.create_namespaced_pod(namespace, k8s.V1Pod(metadata=k8s.V1ObjectMeta(name=name), spec=spec))
        while True:
            pod = await core.read_namespaced_pod(name, namespace)
            conditions = (pod.status.conditions or []) if pod.status else []
            if any(condition.type == "Ready" and condition.status == "True" for condition in conditions):
                break
            await asyncio.sleep(0.02)
        await core.delete_namespaced_pod(name, namespace, grace_period_seconds=1)

    return once


async def claims(backend: KubernetesBackend, count: int) -> Sample:
    """`count` at once, each the time from the wish to the lease."""

    async def one() -> float:
        began = time.perf_counter()
        name = backend.claim(SPEC)
        assert name is not None, "a warm box"
        await lease(await backend.create(name, SPEC, deadline=time.monotonic() + TIMEOUT_S))
        took_s = time.perf_counter() - began
        used.append(name)
        return took_s

    used: list[SandboxId] = []
    seconds = await asyncio.gather(*(one() for _ in range(count)))
    for name in used:
        await backend.destroy(name)
    return Sample(name=f"warm claims, {count} at once", seconds=tuple(seconds))


async def warm(backend: KubernetesBackend, count: int) -> None:
    """Until so many stand ready."""
    backend._warm.want(SPEC)
    deadline = time.monotonic() + TIMEOUT_S
    while sum(len(boxes) for boxes in backend._warm._ready.values()) < count:
        assert time.monotonic() < deadline, "warm boxes in time"
        backend._warm.want(SPEC)
        await asyncio.sleep(0.2)


async def calls(box: Sandbox) -> Sample:
    numbers = iter(range(10_000))

    async def once() -> None:
        number = next(numbers)
        call = PendingCall(key=CallKey(f"k{number}"), sequence=number + 1, tool="shell", arguments={}, operations=0)
        op = Exec(argv=("true",), timeout_s=10)
        await box.run(op, op_id=OpId(call=call.key, number=0), deadline=time.monotonic() + 20, call=call)
        await box.acknowledge([call.key])

    return await timed("tool call `true`", once, runs=CALLS)


async def main(out: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="ty-bench-") as folder:
        settings = KubernetesSettings(
            deployment=f"bench-{secrets.token_hex(3)}", host_id="bench", state_dir=Path(folder), warm_boxes=AT_ONCE
        )
        async with KubernetesBackend(settings) as backend:
            samples = await measured(backend)
    rows = [{"sample": s.name, "runs": len(s.seconds), "p50_s": s.p50, "p95_s": s.quantile(0.95)} for s in samples]
    print(json.dumps(rows, indent=1))
    by_name = {sample.name: sample for sample in samples}
    print(f"cold box against a bare pod, p50: {by_name['cold box'].p50 / by_name['bare pod'].p50:.2f} x")
    if out is not None:
        await asyncio.to_thread(out.write_text, json.dumps(rows))


async def measured(backend: KubernetesBackend) -> list[Sample]:
    backend._warm._size = 0
    start = cold(backend)
    found = list(
        (await interleaved([("bare pod", bare(backend)), ("cold box", start)], runs=STARTS, warmup=1)).values()
    )
    writes = backend.api.writes
    for name in start.made:  # type: ignore[attr-defined]
        await backend.destroy(name)
    print(f"API writes per cold rollout: {backend.api.writes / len(start.made):.2f}", file=sys.stderr)  # type: ignore[attr-defined]
    backend._warm._size = AT_ONCE
    await warm(backend, AT_ONCE)
    backend._warm._size = 0
    writes = backend.api.writes
    one_by_one = []
    for _ in range(CLAIMS):
        one_by_one += (await claims(backend, 1)).seconds
    await asyncio.sleep(1.0)
    print(
        f"API writes per warm rollout, its making apart: {(backend.api.writes - writes) / CLAIMS:.2f}", file=sys.stderr
    )
    found.append(Sample(name="warm claim", seconds=tuple(one_by_one)))
    backend._warm._size = AT_ONCE
    await warm(backend, AT_ONCE)
    backend._warm._size = 0
    found.append(await claims(backend, AT_ONCE))
    box = await backend.create(
        SandboxId("calls"),
        SandboxSpec(image=IMAGE, template=None, limits=Limits()),
        deadline=time.monotonic() + TIMEOUT_S,
    )
    await lease(box)
    found.append(await calls(box))
    await backend.destroy(SandboxId("calls"))
    return found


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
