"""A real server over a real cluster, a trainer of it, and looks at the pods: for the tests of what befalls them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from orchestrator.interfaces import Sandbox
from orchestrator.models import CallKey, OpId, PendingCall
from orchestrator.operations import Exec, ExecResult
from tests.e2e.harness import Server, Trainer, make_repository, serving, task_rows
from tests.kubernetes.cluster import NAMESPACE, Cluster

SMALL: dict[str, object] = {"memory_mib": 128, "disk_mib": 64, "pids": 64, "cpus": 0.2}


async def run(box: Sandbox, key: str, script: str) -> str:
    """What a command of a leased box prints."""
    call = PendingCall(key=CallKey(key), sequence=1, tool="shell", arguments={}, operations=0)
    op = Exec(argv=("sh", "-c", script), timeout_s=20)
    done = await box.run(op, op_id=OpId(call=call.key, number=0), deadline=time.monotonic() + 30, call=call)
    assert isinstance(done, ExecResult), done
    return done.stdout.head.decode()


@asynccontextmanager
async def served(
    cluster: Cluster,
    folder: Path,
    *,
    limits: dict[str, object] = SMALL,
    image: str = "tiltyard/python:3.11",
    **env: str,
) -> AsyncIterator[Server]:
    repo = folder / "repo"
    commit = await asyncio.to_thread(make_repository, repo)
    settings = {
        "TILTYARD_BACKEND": "kubernetes",
        "KUBECONFIG": str(cluster.kubeconfig),
        "TILTYARD_KUBE_WARM_BOXES": "0",
        "TILTYARD_GRADER_RESERVE": "0",
        "PATH": cluster.env["PATH"],
    }
    try:
        async with serving(
            folder, task_rows(repo, commit, limits=limits, image=image), **{**settings, **env}
        ) as server:
            yield server
    finally:
        cluster.kubectl("delete", "pods", "--all", "-n", NAMESPACE, "--grace-period=0", "--force", "--wait=false")


@asynccontextmanager
async def trainer(server: Server, trace: str, task: str = "calc-tests") -> AsyncIterator[Trainer]:
    async with aiohttp.ClientSession() as session:
        yield Trainer(server=server, trace_id=trace, task_id=task, session=session)


async def status_of(server: Server, path: str, body: dict[str, object]) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(server.url + path, json=body) as reply:
        return reply.status, await reply.text()


def a_call(trace: str, command: str, call_id: str = "c-x", task: str = "calc-tests") -> dict[str, object]:
    arguments = json.dumps({"command": command})
    body: dict[str, object] = {"type": "function_call", "id": f"fc-{call_id}", "call_id": call_id, "name": "shell"}
    return body | {"arguments": arguments, "trace_id": trace, "item": {"task_id": task}}


def a_grade(trace: str) -> dict[str, object]:
    sample = {"output_text": "Done.", "output_tools": []}
    return {"sample": sample, "item": {"task_id": "calc-tests"}, "trace_id": trace}


def pod_of(cluster: Cluster) -> str:
    (name,) = [name for name in cluster.pods() if name.startswith("tiltyard-r-")]
    return name


async def is_lost_and_never_scored(
    server: Server, trace: str, calling: "asyncio.Task[tuple[int, str]]", within_s: float = 60.0
) -> None:
    """The call that was under way, and the grade after it, end as ours."""
    status, text = await asyncio.wait_for(calling, within_s)
    assert status >= 500, text
    assert "sandbox_lost" in text, text
    status, text = await status_of(server, "/grade", a_grade(trace))
    assert status >= 500, text
    assert "score" not in json.loads(text)


async def no_pods(cluster: Cluster, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while left := await asyncio.to_thread(cluster.pods):
        assert time.monotonic() < deadline, f"left: {left}"
        await asyncio.sleep(0.5)
