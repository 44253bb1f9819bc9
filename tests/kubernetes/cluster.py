"""A real cluster for the tests: somebody's, one of kind's, or a throwaway one; k8s/base applied, and a host's own rights to work under."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.backends.kubernetes.agent_image import write_agent_image

ROOT = Path(__file__).parents[2]
NAMESPACE = "tiltyard-sandboxes"
IMAGES = ("tiltyard/python:3.11", "tiltyard/busybox:bookworm")
KIND = "tiltyard-tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`admin` is for what breaks and repairs; the product runs under `kubeconfig`, a host's service account."""

    admin: Path
    kubeconfig: Path
    script: Path | None
    env: dict[str, str]

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.admin), *arguments],
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def run(self, *arguments: str, nodes: int = 1) -> str:
        """The throwaway cluster's own commands: kill, lose, up."""
        assert self.script is not None
        env = {**self.env, "KUBE_NODES": str(nodes)}
        done = subprocess.run(
            [str(self.script), *arguments], env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pods(self) -> list[str]:
        found = json.loads(self.kubectl("get", "pods", "-n", NAMESPACE, "-o", "json"))["items"]
        return [pod["metadata"]["name"] for pod in found]


@contextmanager
def started(nodes: int = 1) -> Iterator[Cluster]:
    """Ready to serve on, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ty-kube-") as name, _cluster(nodes, Path(name)) as cluster:
        load_images(cluster, Path(name))
        _apply(cluster)
        yield cluster


@contextmanager
def _cluster(nodes: int, folder: Path) -> Iterator[Cluster]:
    given = os.environ.get("TILTYARD_TEST_KUBECONFIG")
    kubeconfig, env = folder / "host.kubeconfig", dict(os.environ)
    if given:
        yield Cluster(admin=Path(given), kubeconfig=kubeconfig, script=None, env=env)
    elif shutil.which("kind"):
        admin = folder / "admin.kubeconfig"
        _sh("kind", "create", "cluster", "--name", KIND, "--kubeconfig", str(admin))
        try:
            yield Cluster(admin=admin, kubeconfig=kubeconfig, script=None, env=env)
        finally:
            _sh("kind", "delete", "cluster", "--name", KIND)
    else:
        script = Path(os.environ["TILTYARD_KUBE_ASSETS"], "cluster")
        # A socket of a shim has 107 bytes for its path; mounts and processes of an earlier, killed run go first.
        _sh(str(script), "down")
        home = Path(env.get("KUBE_DIR", "/var/lib/throwaway-kube"))
        env["PATH"] = f"{home}/bin:{env['PATH']}"
        try:
            _sh(str(script), "up", env={**env, "KUBE_NODES": str(nodes)})
            yield Cluster(admin=home / "admin.kubeconfig", kubeconfig=kubeconfig, script=script, env=env)
        finally:
            _sh(str(script), "down")


def _sh(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
    return done.stdout


def load_images(cluster: Cluster, folder: Path, nodes: int = 1) -> None:
    if cluster.script is None and not shutil.which("kind"):
        return  # the cluster's owner has them in a registry
    agent, boxes = folder / "agent.tar", folder / "boxes.tar"
    write_agent_image(agent)
    _sh("docker", "save", "-o", str(boxes), *IMAGES)  # made by sandbox_images/build
    archives = (agent, boxes)
    for archive in archives:
        if cluster.script is not None:
            _sh(str(cluster.script), "load", str(archive), env={**cluster.env, "KUBE_NODES": str(nodes)})
        else:
            _sh("kind", "load", "image-archive", str(archive), "--name", KIND)
        archive.unlink()


def _apply(cluster: Cluster) -> None:
    cluster.kubectl("apply", "-k", str(ROOT / "k8s" / "base"))
    cluster.kubectl("apply", "-f", str(ROOT / "k8s" / "components" / "gvisor" / "runtime-class.yaml"))
    token = cluster.kubectl("create", "token", "tiltyard-host", "-n", "tiltyard", "--duration", "6h").strip()
    config = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": "host", "user": {"token": token}}]
    context = config["contexts"][0]
    context["context"]["user"] = "host"
    cluster.kubeconfig.write_text(json.dumps(config))
    cluster.kubeconfig.chmod(0o600)
