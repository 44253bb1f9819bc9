"""A real server over a real cluster, with live rollouts, and what befalls both: the right words, no reward invented, no pod left."""

import asyncio
import contextlib
import json
import time
from pathlib import Path

import pytest

from tests.e2e.harness import MENDED, Server, make_repository, serving, task_rows
from tests.kubernetes.cluster import NAMESPACE, Cluster
from tests.kubernetes.rollouts import (
    SMALL,
    a_call,
    is_lost_and_never_scored,
    no_pods,
    pod_of,
    served,
    status_of,
    trainer,
)
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(300)]


async def test_a_rollout_runs_is_graded_and_leaves_no_pod(cluster: Cluster, tmp_path: Path) -> None:
    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        assert "FUTURE-MARK" not in await one.call("c1", "shell", command="git log --all; cat calc.py")
        await one.call("c2", "write_file", path="calc.py", content=MENDED)
        assert await one.grade() == 1.0
        await no_pods(cluster)


async def test_a_killed_host_is_followed_and_each_call_runs_once(cluster: Cluster, tmp_path: Path) -> None:
    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        await one.call("c1", "shell", command="echo one >> log")
        pod = pod_of(cluster)
        slow = asyncio.create_task(one.call("c2", "shell", command="sleep 3; echo two >> log; cat log"))
        await asyncio.sleep(1.0)
        await server.kill()
        await server.start()
        assert await slow == "one\ntwo\n"
        assert pod_of(cluster) == pod
        assert await one.call("c3", "shell", command="cat log") == "one\ntwo\n"
        await one.call("c4", "write_file", path="calc.py", content=MENDED)
        assert await one.grade() == 1.0


async def test_a_second_host_on_the_same_store_takes_over(cluster: Cluster, tmp_path: Path) -> None:
    """By compare-and-set and a higher epoch: the first one, still alive, has nothing more to say in it until it takes it back."""
    async with served(cluster, tmp_path) as first, trainer(first, "t-1") as one:
        await one.call("c1", "shell", command="echo one >> log")
        pod = pod_of(cluster)
        second = Server(
            folder=tmp_path,
            tasks=first.tasks,
            deployment=first.deployment,
            state=first.state,
            env={**first.env, "TILTYARD_HOST_ID": "e2e-2"},
        )
        await second.start(TILTYARD_HOST_ID="e2e-2")
        try:
            async with trainer(second, "t-1") as other:
                assert await other.call("c2", "shell", command="echo two >> log; cat log") == "one\ntwo\n"
                assert pod_of(cluster) == pod
                status, text = await status_of(first, "/tools", a_call("t-1", "echo stale >> log"))
                assert status >= 500 or json.loads(text)["output"] == "", text
                assert await other.call("c3", "shell", command="grep -c one log") == "1\n"
                await first.kill()
                await other.call("c4", "write_file", path="calc.py", content=MENDED)
                assert await other.grade() == 1.0
        finally:
            await second.stop()
        await no_pods(cluster)


@pytest.mark.parametrize("how", ["deleted", "evicted", "owner deleted"])
async def test_a_box_that_the_cluster_ends_is_lost_and_never_scored(cluster: Cluster, tmp_path: Path, how: str) -> None:
    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        await one.call("c1", "shell", command="true")
        calling = asyncio.create_task(status_of(server, "/tools", a_call("t-1", "sleep 60")))
        await asyncio.sleep(1.0)
        pod = pod_of(cluster)
        if how == "deleted":
            cluster.kubectl("delete", "pod", pod, "-n", NAMESPACE, "--wait=false")
        elif how == "evicted":
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": NAMESPACE},
            }
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
            cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        else:
            cluster.kubectl("delete", "configmap", f"tiltyard-{server.deployment}", "-n", NAMESPACE)
        await is_lost_and_never_scored(server, "t-1", calling)
        await no_pods(cluster)


async def test_calls_need_no_api_server(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.script is None:
        pytest.skip("only a throwaway cluster's parts may be killed")
    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        await one.call("c1", "shell", command="true")
        cluster.run("kill", "kube-apiserver")
        cluster.run("kill", "etcd")
        try:
            for number in range(30):
                assert await one.call(f"d{number}", "shell", command=f"echo {number}") == f"{number}\n"
                await asyncio.sleep(1.0)
        finally:
            await asyncio.to_thread(cluster.run, "up")
        await one.call("c9", "write_file", path="calc.py", content=MENDED)
        assert await one.grade() == 1.0


async def test_a_killed_kubelet_and_engine_cost_no_box(cluster: Cluster, tmp_path: Path) -> None:
    if cluster.script is None:
        pytest.skip("only a throwaway cluster's parts may be killed")
    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        await one.call("c1", "shell", command="echo kept > file")
        cluster.run("kill", "kubelet-1")
        cluster.run("kill", "containerd-1")
        assert await one.call("c2", "shell", command="cat file") == "kept\n"
        await asyncio.to_thread(cluster.run, "up")
        assert await one.call("c3", "shell", command="cat file") == "kept\n"
        await one.call("c4", "write_file", path="calc.py", content=MENDED)
        assert await one.grade() == 1.0


async def test_a_full_quota_is_said_and_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    def quota(pods: str) -> None:
        patch = json.dumps({"spec": {"hard": {"pods": pods}}})
        cluster.kubectl("patch", "resourcequota", "boxes", "-n", NAMESPACE, "--type=merge", "-p", patch)

    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        quota("0")
        try:
            await asyncio.sleep(1.0)
            status, text = await status_of(server, "/tools", a_call("t-1", "true"))
            assert status >= 500
            assert "quota" in text, text
        finally:
            quota("500")
        assert await one.call("c1", "shell", command="echo room") == "room\n"


async def test_a_foreign_finalizer_holds_a_pod_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    def finalizers(names: list[str]) -> None:
        patch = json.dumps({"metadata": {"finalizers": names or None}})
        cluster.kubectl("patch", "pod", pod, "-n", NAMESPACE, "--type=merge", "-p", patch)

    async with served(cluster, tmp_path) as server, trainer(server, "t-1") as one:
        await one.call("c1", "write_file", path="calc.py", content=MENDED)
        pod = pod_of(cluster)
        finalizers(["example.org/held"])
        try:
            async with trainer(server, "t-2") as two:
                assert await two.call("c1", "shell", command="echo beside") == "beside\n"
            calling = asyncio.create_task(one.grade())
            deadline = time.monotonic() + 60
            while "example.org/held" not in server.log():
                assert time.monotonic() < deadline, server.log()[-2000:]
                await asyncio.sleep(0.5)
        finally:
            finalizers([])
        assert await calling == 1.0


async def test_an_image_that_cannot_be_pulled_is_named(cluster: Cluster, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    commit = await asyncio.to_thread(make_repository, repo)
    rows = task_rows(repo, commit, image="nowhere.invalid/none:1", limits=SMALL)
    env = {"TILTYARD_BACKEND": "kubernetes", "KUBECONFIG": str(cluster.kubeconfig), "TILTYARD_KUBE_WARM_BOXES": "0"}
    with contextlib.suppress(FileNotFoundError):
        async with serving(tmp_path, rows, **env) as server:
            status, text = await status_of(server, "/tools", a_call("t-1", "true"))
            assert status >= 500
            assert "cannot be pulled" in text, text
            await no_pods(cluster)


async def test_a_cluster_that_refuses_is_known_before_the_first_rollout(cluster: Cluster, tmp_path: Path) -> None:
    config = json.loads(cluster.kubeconfig.read_text())
    broken = {}
    for name, change in {"token": {"token": "expired"}}.items():
        copy = json.loads(json.dumps(config))
        copy["users"][0]["user"] = change
        broken[name] = tmp_path / f"{name}.kubeconfig"
        broken[name].write_text(json.dumps(copy))
    repo = tmp_path / "repo"
    commit = await asyncio.to_thread(make_repository, repo)
    for path, env, word in (
        (broken["token"], {}, "credentials"),
        (cluster.kubeconfig, {"TILTYARD_KUBE_NAMESPACE": "kube-system"}, "refuses"),
        (tmp_path / "none", {}, "no cluster to serve on"),
    ):
        with pytest.raises((AssertionError, TimeoutError)):
            async with serving(
                tmp_path, task_rows(repo, commit), TILTYARD_BACKEND="kubernetes", KUBECONFIG=str(path), **env
            ):
                pass
        log = (tmp_path / "server.log").read_text()
        assert word in log, log[-1500:]
