"""`tiltyard deploy check` over a real cluster: clean as k8s/base makes it, and red, with the fix, for each thing that is taken away."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backends.checks import Check, Verdict
from orchestrator.backends.kubernetes.check import check
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from tests.kubernetes.cluster import NAMESPACE, ROOT, Cluster
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(240)]

SETTINGS = KubernetesSettings(
    deployment="check", host_id="h", state_dir=Path("/tmp") / f"ty-check-{secrets.token_hex(3)}", start_s=20.0
)


@pytest.fixture
def settings(short_path: Path) -> KubernetesSettings:
    return replace(SETTINGS, state_dir=short_path)


def red(rows: Sequence[Check]) -> list[str]:
    return [row.name for row in rows if row.verdict is Verdict.FAIL]


async def test_a_cluster_with_everything_is_clean(cluster: Cluster, settings: KubernetesSettings) -> None:
    rows = await check(settings, "tiltyard/busybox:bookworm")
    assert not red(rows), rows
    assert [row.name for row in rows][-2:] == ["box", "network"]
    assert not cluster.pods()


async def test_C21_a_mutant_without_policies_is_found(cluster: Cluster, settings: KubernetesSettings) -> None:
    """Both by what is there and by what a box can reach: an open policy beside ours is no policy at all."""
    cluster.kubectl("delete", "networkpolicy", "--all", "-n", NAMESPACE)
    try:
        assert red(await check(settings)) == ["policies"]
        everything = "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}"
        opened = (
            f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: open}}\nspec: {everything}\n"
        )
        cluster.kubectl("apply", "-k", str(ROOT / "k8s" / "base"))
        cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=opened)
        rows = await check(settings)
        assert red(rows) == ["network"], rows
        assert "another box" in rows[-1].detail
    finally:
        cluster.kubectl("delete", "networkpolicy", "open", "-n", NAMESPACE, "--ignore-not-found")
        cluster.kubectl("apply", "-k", str(ROOT / "k8s" / "base"))


@pytest.mark.parametrize(
    ("change", "row", "word"),
    [
        ({"context": "nowhere"}, "cluster", "contexts"),
        ({"namespace": "kube-system"}, "cluster", "service account"),
        ({"runtime_class": "nothing"}, "runtime class", "gvisor"),
        ({"priority_class": "nothing"}, "priority", "k8s/base"),
        ({"agent_image": "nowhere.invalid/agent:1"}, "box", "agent-image"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_missing_is_named_with_its_fix(
    cluster: Cluster, settings: KubernetesSettings, change: dict[str, str], row: str, word: str
) -> None:
    rows = await check(replace(settings, **change))  # type: ignore[arg-type]
    assert red(rows) == [row], rows
    assert word in next(found.fix for found in rows if found.name == row)
    assert not cluster.pods()
