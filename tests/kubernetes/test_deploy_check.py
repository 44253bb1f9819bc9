"""`tiltyard deploy check`: the ways in which there is no cluster, and what is missing in a real one (see also test_check_rows.py)."""

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestrator.backends.checks import Check, Verdict
from orchestrator.backends.kubernetes.check import (
    check,
)
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from tests.kubernetes.cluster import NAMESPACE, Cluster
from tests.needs import needs

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

ENFORCE = "pod-security.kubernetes.io/enforce"


@pytest.fixture
def settings(short_path: Path) -> KubernetesSettings:
    return KubernetesSettings(deployment="check", host_id="h", state_dir=short_path, start_s=20.0)


def red(rows: Sequence[Check]) -> list[str]:
    return [row.name for row in rows if row.verdict is Verdict.FAIL]


# ---- no cluster


def a_kubeconfig(server: str, user: Mapping[str, Any], **cluster: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
    )


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def use(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    "text",
    ["a: [", "", "[1]", "{}", a_kubeconfig("https://127.0.0.1:1", {}, **{"certificate-authority-data": "AAAA"})],
    ids=["malformed", "empty", "list", "without contexts", "bad certificate"],
)
async def test_a_kubeconfig_that_cannot_be_used_is_a_row(
    kubeconfig: Path, settings: KubernetesSettings, text: str
) -> None:
    use(kubeconfig, text)
    (row,) = await check(settings)
    assert (row.name, row.verdict) == ("cluster", "fail")
    assert row.fix


async def test_no_kubeconfig_at_all_is_a_row(kubeconfig: Path, settings: KubernetesSettings) -> None:
    (row,) = await check(settings)
    assert "KUBECONFIG" in row.detail


async def test_a_server_that_is_not_there_is_a_row(kubeconfig: Path, settings: KubernetesSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        use(kubeconfig, a_kubeconfig(f"http://127.0.0.1:{port}", {}))
        (row,) = await check(settings)
        assert "does not answer (TimeoutError)" in row.detail
    (row,) = await check(settings)
    assert "does not answer" in row.detail


@asynccontextmanager
async def answering(status: int, message: str) -> AsyncIterator[str]:
    """A server that refuses whatever it is asked, in Kubernetes' words."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "code": status, "message": message}, status=status)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "message", "word"),
    [
        (401, "Unauthorized", "log in again"),
        (403, 'User "system:anonymous" cannot get', "without credentials"),
        (403, 'User "u" cannot get', "service account"),
        (404, "not found", "k8s/base"),
        (500, "etcd", "answers 500"),
    ],
)
async def test_refusals_are_told_apart(
    kubeconfig: Path, settings: KubernetesSettings, status: int, message: str, word: str
) -> None:
    async with answering(status, message) as url:
        use(kubeconfig, a_kubeconfig(url, {}))
        (row,) = await check(settings)
    assert word in f"{row.detail} {row.fix}"


# ---- a real one


def real(test: Any) -> Any:
    return needs("kubernetes", "root")(pytest.mark.cluster(test))


def as_whom(cluster: Cluster, path: Path, user: Mapping[str, Any], **changes: str) -> None:
    """A host's kubeconfig, with other credentials or another cluster's facts."""
    config = json.loads(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = user
    config["clusters"][0]["cluster"].update(changes)
    path.write_text(json.dumps(config))


@real
async def test_credentials_that_are_not_good_enough(
    cluster: Cluster, kubeconfig: Path, settings: KubernetesSettings
) -> None:
    host = json.loads(cluster.kubeconfig.read_text())["users"][0]["user"]
    as_whom(cluster, kubeconfig, host)
    assert (await check(replace(settings, runtime_class="none")))[0].verdict == "ok", "the control"
    as_whom(cluster, kubeconfig, {"token": f"{host['token'][:-8]}AAAAAAAA"})
    (row,) = await check(settings)
    assert "expired" in row.detail
    as_whom(cluster, kubeconfig, {})
    (row,) = await check(settings)
    assert "without credentials" in row.detail
    as_whom(cluster, kubeconfig, {"token": cluster.kubectl("create", "token", "default", "-n", "tiltyard").strip()})
    (row,) = await check(settings)
    assert "service account" in row.fix


def an_authority(folder: Path) -> str:
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x"]
    files = ["-keyout", folder / "key", "-out", folder / "crt"]
    subprocess.run(["openssl", *made, *files], check=True, capture_output=True, timeout=30)
    return base64.b64encode((folder / "crt").read_bytes()).decode()


@real
async def test_another_clusters_certificate_is_found(
    cluster: Cluster, kubeconfig: Path, settings: KubernetesSettings, tmp_path: Path
) -> None:
    as_whom(cluster, kubeconfig, {}, **{"certificate-authority-data": an_authority(tmp_path)})
    (row,) = await check(settings)
    assert "not the cluster" in row.detail


@contextmanager
def given(cluster: Cluster, *command: str, back: Sequence[str]) -> Iterator[None]:
    cluster.kubectl(*command)
    try:
        yield
    finally:
        cluster.kubectl(*back)


def without(cluster: Cluster, resource: str, verb: str) -> AbstractContextManager[None]:
    """The hosts' role of k8s/base, less one right."""
    role = ("role", "tiltyard-host", "-n", NAMESPACE)
    rules = json.loads(cluster.kubectl("get", *role, "-o", "json"))["rules"]
    less = [
        rule | {"verbs": [each for each in rule["verbs"] if each != verb or resource not in rule["resources"]]}
        for rule in rules
    ]

    def patch(to: list[dict[str, Any]]) -> Sequence[str]:
        return ("patch", *role, "--type=merge", "-p", json.dumps({"rules": to}))

    return given(cluster, *patch(less), back=patch(rules))


@real
@pytest.mark.parametrize(("resource", "verb"), [("pods", "create"), ("pods", "watch"), ("configmaps", "delete")])
async def test_a_right_that_is_missing_is_named(
    cluster: Cluster, settings: KubernetesSettings, resource: str, verb: str
) -> None:
    with without(cluster, resource, verb):
        rows = await check(settings)
    assert red(rows) == ["permissions"], rows
    assert f"not allowed: {verb} {resource}" in next(row.detail for row in rows if row.name == "permissions")


@real
async def test_a_namespace_that_is_missing_is_named(cluster: Cluster, settings: KubernetesSettings) -> None:
    """Whoever may read namespaces is told that; a host of ours may read its own alone."""
    rule = ("create", "clusterrole", "reads-namespaces", "--verb=get", "--resource=namespaces")
    bind = ("create", "clusterrolebinding", "reads-namespaces", "--clusterrole=reads-namespaces")
    bind += ("--serviceaccount=tiltyard:tiltyard-host",)
    with (
        given(cluster, *rule, back=("delete", "clusterrole", "reads-namespaces")),
        given(cluster, *bind, back=("delete", "clusterrolebinding", "reads-namespaces")),
    ):
        assert red(await check(replace(settings, namespace="nowhere"))) == ["namespace"]


@real
async def test_a_namespace_that_refuses_our_pods_is_named(cluster: Cluster, settings: KubernetesSettings) -> None:
    """The control: boxes of level restricted start there."""
    label = ("label", "namespace", NAMESPACE, "--overwrite")
    with given(cluster, *label, f"{ENFORCE}=restricted", back=(*label, f"{ENFORCE}=baseline")):
        assert red(await check(settings)) == ["pod security"]
        rows = await check(replace(settings, security="restricted"))
        assert not red(rows), rows


@real
async def test_a_quota_without_room_is_named(cluster: Cluster, settings: KubernetesSettings) -> None:
    quota = ("quota", "tight", "-n", NAMESPACE)
    with given(cluster, "create", *quota, "--hard=pods=1", back=("delete", *quota)):
        rows = await check(settings)
    assert red(rows) == ["quota"], rows
    assert "pods of tight" in next(row.detail for row in rows if row.name == "quota")


@real
async def test_a_tasks_image_that_no_node_has_is_named(cluster: Cluster, settings: KubernetesSettings) -> None:
    rows = await check(settings, "nowhere.invalid/task:1")
    assert red(rows) == ["box"], rows
    assert "pulled" in rows[-1].detail
    assert not cluster.pods()


@real
async def test_it_leaves_nothing_behind(cluster: Cluster, settings: KubernetesSettings) -> None:
    """Neither pods nor its own object, nor a file in the deployment's folder."""
    before = cluster.kubectl("get", "configmaps", "-n", NAMESPACE, "-o", "name")
    rows = await check(settings)
    assert not red(rows), rows
    assert "clean-up" not in [row.name for row in rows]
    assert cluster.kubectl("get", "configmaps", "-n", NAMESPACE, "-o", "name") == before
    assert not cluster.pods()
    assert not list(settings.state_dir.iterdir())


@real
def test_the_command_tells_all_of_it(cluster: Cluster, tmp_path: Path) -> None:
    """Under gVisor, and in JSON; then for people, with a class that is not there."""
    tiltyard = Path(sys.executable).with_name("tiltyard")
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "TILTYARD_STATE_DIR": str(tmp_path)}
    asked = [tiltyard, "deploy", "check", "--image", "tiltyard/python:3.11"]

    def run(*more: str, runtime_class: str) -> tuple[int, str]:
        settings = {**env, "TILTYARD_KUBE_RUNTIME_CLASS": runtime_class}
        done = subprocess.run([*asked, *more], env=settings, capture_output=True, text=True, timeout=200, check=False)
        return done.returncode, done.stdout

    status, out = run("--json", runtime_class="gvisor")
    rows = {row["name"]: row["verdict"] for row in json.loads(out)}
    assert [rows.get(name) for name in ("runtime class", "box", "network")] == ["ok", "ok", "ok"], out
    assert status == 0
    status, out = run(runtime_class="nothing")
    assert status == 1
    assert "no RuntimeClass 'nothing'" in out
