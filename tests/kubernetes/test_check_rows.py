"""What `tiltyard deploy check` decides from what it sees: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client as k8s

from orchestrator.backends.kubernetes.check import (
    OWN_AGENT,
    SMALL,
    needed,
    network,
    pod_security,
    room,
    shut_off,
    start_fix,
    unreachable,
)
from orchestrator.backends.kubernetes.ends import classify_end, slow_start
from orchestrator.backends.kubernetes.facts import facts_of
from orchestrator.backends.kubernetes.settings import KubernetesSettings

ENFORCE = "pod-security.kubernetes.io/enforce"
RUNNING = facts_of(
    {
        "metadata": {
            "name": "tiltyard-a",
            "uid": "u",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": [{"name": "box", "state": {"running": {}}}],
        },
    }
)
SETTINGS = KubernetesSettings(deployment="check", host_id="h", state_dir=Path("/nowhere"), start_s=20.0)


@pytest.mark.parametrize(
    ("labels", "wanted", "verdict"),
    [
        ({ENFORCE: "baseline"}, "baseline", "ok"),
        ({ENFORCE: "baseline"}, "restricted", "ok"),
        ({ENFORCE: "restricted"}, "restricted", "ok"),
        ({ENFORCE: "restricted"}, "baseline", "fail"),
        ({ENFORCE: "privileged"}, "baseline", "warn"),
        ({}, "baseline", "warn"),
        (None, "baseline", "warn"),
    ],
)
def test_pod_security_levels(labels: Mapping[str, str] | None, wanted: str, verdict: str) -> None:
    assert pod_security(labels, wanted).verdict == verdict


def a_quota(hard: Mapping[str, str], used: Mapping[str, str] | None = None, **spec: Any) -> k8s.V1ResourceQuota:
    return k8s.V1ResourceQuota(
        metadata=k8s.V1ObjectMeta(name="q"),
        spec=k8s.V1ResourceQuotaSpec(hard=dict(hard), **spec),
        status=k8s.V1ResourceQuotaStatus(used=dict(used or {})),
    )


@pytest.mark.parametrize(
    ("quotas", "verdict", "word"),
    [
        (None, "warn", "cannot be read"),
        ([], "warn", "none"),
        ([a_quota({"pods": "10"}, {"pods": "8"})], "ok", "2 pods"),
        ([a_quota({"pods": "10"}, {"pods": "9"})], "fail", "pods of q"),
        ([a_quota({"requests.cpu": "1"}, {"requests.cpu": "850m"})], "fail", "requests.cpu"),
        ([a_quota({"requests.cpu": "1"}, {"requests.cpu": "800m"})], "ok", "room"),
        ([a_quota({"limits.memory": "1Gi"}, {"limits.memory": "1000Mi"})], "fail", "limits.memory"),
        ([a_quota({"memory": "127Mi"})], "fail", "memory"),
        ([a_quota({"requests.ephemeral-storage": "600Mi"})], "fail", "ephemeral"),
        ([a_quota({"services": "0"})], "ok", "room"),
        ([a_quota({"pods": "0"}, scopes=["BestEffort"])], "ok", "room"),
    ],
)
def test_room_in_the_quota(quotas: Sequence[k8s.V1ResourceQuota] | None, verdict: str, word: str) -> None:
    row = room(quotas, SMALL)
    assert (row.verdict, word in row.detail) == (verdict, True), row


def a_policy(*ways: str, labels: dict[str, str] | None = None, **rules: Any) -> k8s.V1NetworkPolicy:
    selector = k8s.V1LabelSelector(match_labels=labels)
    spec = k8s.V1NetworkPolicySpec(pod_selector=selector, policy_types=list(ways), **rules)
    return k8s.V1NetworkPolicy(metadata=k8s.V1ObjectMeta(name="n"), spec=spec)


BOXES = {"tiltyard.dev/role": "box"}


@pytest.mark.parametrize(
    ("policies", "verdict"),
    [
        ([a_policy("Ingress", "Egress")], "ok"),
        ([a_policy("Ingress", "Egress", labels=BOXES)], "ok"),
        ([a_policy("Ingress"), a_policy("Egress")], "ok"),
        ([a_policy("Ingress", "Egress", labels={"app": "other"})], "fail"),
        ([a_policy("Ingress")], "fail"),
        ([a_policy("Ingress", "Egress", egress=[k8s.V1NetworkPolicyEgressRule()])], "fail"),
        ([], "fail"),
    ],
)
def test_policies_that_shut_boxes_off(policies: Sequence[k8s.V1NetworkPolicy], verdict: str) -> None:
    assert shut_off(policies).verdict == verdict


def test_what_a_host_needs_follows_its_settings() -> None:
    def words(quotas: Sequence[k8s.V1ResourceQuota] | None = (), **changes: Any) -> set[str]:
        return {str(right) for right in needed(replace(SETTINGS, **changes), quotas)}

    assert {"create pods", "delete configmaps", "list resourcequotas", "list nodes"} <= words()
    assert "list nodes" not in words([a_quota({"requests.memory": "1Gi"})])
    assert "list nodes" not in words(memory_limit_mib=1024)
    assert "create pods/portforward" in words(port_forward=True)
    assert "create pods/portforward" not in words()


def test_nothing_is_proved_by_a_probe_that_reaches_nothing() -> None:
    targets = {"10.0.0.1 7070": "another box"}
    assert network({OWN_AGENT: "connected", "10.0.0.1 7070": "unreachable"}, targets).verdict == "ok"
    assert network({OWN_AGENT: "connected", "10.0.0.1 7070": "refused"}, targets).verdict == "ok"
    assert network({OWN_AGENT: "connected", "10.0.0.1 7070": "connected"}, targets).verdict == "fail"
    assert network({OWN_AGENT: "unreachable", "10.0.0.1 7070": "unreachable"}, targets).verdict == "fail"
    assert network({OWN_AGENT: "connected"}, targets).verdict == "fail"


@pytest.mark.parametrize(
    ("status", "what", "row", "word"),
    [
        (404, "", "namespace", "k8s/base"),
        (403, "system:anonymous", "cluster", "without credentials"),
        (None, "ClientConnectorCertificateError", "cluster", "not the cluster"),
    ],
)
def test_why_a_cluster_is_not_reached(status: int | None, what: str, row: str, word: str) -> None:
    told = unreachable("https://c", "ns", status, what)
    assert told.name == row
    assert word in f"{told.detail} {told.fix}"


def test_every_reason_of_a_start_has_a_fix() -> None:
    assert "agent-image" in start_fix("its image cannot be pulled (ImagePullBackOff)")
    assert "quota" in start_fix("the namespace's quota is full")
    assert "TILTYARD_KUBE_PORT_FORWARD" in start_fix(slow_start(None))
    assert "TILTYARD_KUBE_PORT_FORWARD" in start_fix(slow_start(RUNNING))
    assert "TILTYARD_KUBE_PORT_FORWARD" in start_fix(classify_end(RUNNING).message)
    assert "add a node" in start_fix(slow_start(replace(RUNNING, running=False, unschedulable="0/1 nodes")))
    assert start_fix("whatever else")
