"""Manifest, facts and blame: pure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client as k8s

from orchestrator.backends.boxes import AGENT_PIDS
from orchestrator.backends.kubernetes import check
from orchestrator.backends.kubernetes.agent_image import agent_image_reference, write_agent_image
from orchestrator.backends.kubernetes.api import QuotaFull, Refused, mib, start_refusal
from orchestrator.backends.kubernetes.backend import KubernetesBackend
from orchestrator.backends.kubernetes.ends import classify_end, start_failure
from orchestrator.backends.kubernetes.facts import PodFacts, facts_of
from orchestrator.backends.kubernetes.pods import WARM, Owner, PodPlan, agent_config, check_spec, make_pod, uid_block
from orchestrator.backends.kubernetes.settings import KubernetesSettings
from orchestrator.errors import Misconfigured, SandboxDead, SandboxLost, SandboxOutOfMemory, SandboxOverDisk
from orchestrator.interfaces import SandboxSpec
from orchestrator.models import Limits, Network, SandboxId

SETTINGS = KubernetesSettings(deployment="d", host_id="h", state_dir=Path("/nowhere"))
SPEC = SandboxSpec(image="tiltyard/python:3.11", template=None, limits=Limits(), labels={"task": "a/b c"})
PLAN = PodPlan(
    sandbox_id=SandboxId("r-1"),
    spec=SPEC,
    agent_image="tiltyard/agent:1",
    public_key_b64="key",
    uid_base=2_000_000_000,
    owner=Owner(name="tiltyard-d", uid="u-1"),
)
GOLDEN = Path(__file__).parent


def manifest(plan: PodPlan = PLAN, settings: KubernetesSettings = SETTINGS) -> dict[str, Any]:
    found: dict[str, Any] = k8s.ApiClient.sanitize_for_serialization(_CLIENT, make_pod(plan, settings))
    return found


_CLIENT = k8s.ApiClient.__new__(k8s.ApiClient)


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_the_manifest_is_the_golden_one(level: str) -> None:
    """Every field of it is a decision: a change shows here. Renew by writing what this test prints."""
    settings = replace(SETTINGS, security=level)  # type: ignore[arg-type]
    text = json.dumps(manifest(settings=settings), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"golden_pod_{level}.json"
    assert text == path.read_text(), text


def test_no_secret_and_no_way_to_the_cluster_is_in_it() -> None:
    pod = manifest()
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["enableServiceLinks"] is False
    assert not any("hostPath" in volume or "secret" in volume for volume in pod["spec"]["volumes"])
    assert all("env" not in box and "envFrom" not in box for box in pod["spec"]["containers"])
    for box in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
        assert box["resources"]["requests"] == box["resources"]["limits"]
        assert box["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_warm_and_classes_are_as_set() -> None:
    pod = manifest(replace(PLAN, state=WARM), replace(SETTINGS, runtime_class="gvisor", seccomp_profile="t.json"))
    assert pod["spec"]["priorityClassName"] == "tiltyard-warm"
    assert pod["spec"]["runtimeClassName"] == "gvisor"
    profile = {"type": "Localhost", "localhostProfile": "t.json"}
    assert pod["spec"]["securityContext"]["seccompProfile"] == profile


def test_the_agents_own_threads_are_no_processes_of_the_commands() -> None:
    def nproc(pids: int, **changes: object) -> int:
        plan = replace(PLAN, spec=replace(SPEC, limits=Limits(pids=pids)))
        return agent_config(plan, replace(SETTINGS, **changes)).rlimits["nproc"]  # type: ignore[arg-type]

    assert nproc(8) == 8
    assert nproc(8, security="restricted") == 8 + AGENT_PIDS
    assert (nproc(8, runtime_class="gvisor"), nproc(200, runtime_class="gvisor")) == (AGENT_PIDS, 200)


@pytest.mark.parametrize("name", ["https://registry.example/tasks", "registry.example/tasks:1", "Registry/Tasks"])
def test_a_repository_for_task_images_is_read_before_the_first_rollout(name: str) -> None:
    KubernetesBackend(replace(SETTINGS, task_images="registry.example:5000/team/tasks"))
    with pytest.raises(Misconfigured, match="names no repository"):
        KubernetesBackend(replace(SETTINGS, task_images=name))


BAD_SPECS = {
    "network": replace(SPEC, network=Network(allow=("example.org",))),
    "label": replace(SPEC, labels={"tiltyard.dev/role": "host"}),
    "workdir": replace(SPEC, workdir="/etc"),
    "climbing": replace(SPEC, workdir="/a/../etc"),
    "memory": replace(SPEC, limits=Limits(memory_mib=1)),
}


@pytest.mark.parametrize("spec", BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_what_pods_cannot_honour_is_refused(spec: SandboxSpec) -> None:
    check_spec(SandboxId("r-1"), SPEC, SETTINGS)
    with pytest.raises(Misconfigured):
        check_spec(SandboxId("r-1"), spec, SETTINGS)


def test_grading_boxes_are_refused_where_there_is_one_uid() -> None:
    grader = replace(SPEC, grader=True)
    check_spec(SandboxId("g-1"), grader, SETTINGS)
    with pytest.raises(Misconfigured, match="restricted"):
        check_spec(SandboxId("g-1"), grader, replace(SETTINGS, security="restricted"))


def test_uids_are_high_and_blocks_apart() -> None:
    assert uid_block(1) - uid_block(0) == 64
    assert all(2**20 <= uid_block(number) < 2**31 - 64 for number in (0, 1, 2**40, 2**64 - 1))


def a_pod(**status: Any) -> dict[str, Any]:
    meta = {"name": "tiltyard-r-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-11-28T00:00:00Z"}
    labels = {"tiltyard.dev/sandbox": "r-1"}
    return {
        "metadata": {**meta, "labels": labels, **status.pop("meta", {})},
        "spec": {"nodeName": "n"},
        "status": status,
    }


def ended(code: int, reason: str) -> list[dict[str, Any]]:
    return [{"name": "box", "state": {"terminated": {"exitCode": code, "reason": reason}}}]


OWN = 'Usage of EmptyDir volume "disk" exceeds the limit "128Mi". '
ENDS: dict[str, tuple[dict[str, Any] | None, type[Exception]]] = {
    "gone": (None, SandboxLost),
    "memory": (a_pod(phase="Failed", containerStatuses=ended(137, "OOMKilled")), SandboxOutOfMemory),
    "threads": (a_pod(phase="Failed", containerStatuses=ended(2, "Error")), SandboxDead),
    "killed": (a_pod(phase="Failed", containerStatuses=ended(137, "Error")), SandboxLost),
    "deleted after memory ran out": (
        a_pod(phase="Failed", containerStatuses=ended(137, "OOMKilled"), meta={"deletionTimestamp": "x"}),
        SandboxLost,
    ),
    "own disk": (a_pod(phase="Failed", reason="Evicted", message=OWN), SandboxOverDisk),
    "the node's disk": (
        a_pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."),
        SandboxLost,
    ),
    "deadline": (a_pod(phase="Failed", reason="DeadlineExceeded"), SandboxLost),
    "evicted by somebody": (
        a_pod(
            phase="Running",
            conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
        ),
        SandboxLost,
    ),
    "silent": (a_pod(phase="Running"), SandboxLost),
}


@pytest.mark.parametrize(("pod", "kind"), ENDS.values(), ids=ENDS.keys())
def test_blame(pod: dict[str, Any] | None, kind: type[Exception]) -> None:
    assert type(classify_end(None if pod is None else facts_of(pod))) is kind


def facts(**status: Any) -> PodFacts:
    return facts_of(a_pod(**status))


def waits(reason: str) -> PodFacts:
    return facts(containerStatuses=[{"name": "box", "state": {"waiting": {"reason": reason, "message": "why"}}}])


def test_why_a_start_cannot_succeed() -> None:
    assert "push it" in start_failure(waits("ImagePullBackOff"))
    assert "ErrImageNeverPull" in start_failure(waits("ErrImageNeverPull"))
    assert "deleted" in start_failure(None)
    assert start_failure(waits("PodInitializing")) == ""
    assert start_failure(facts(phase="Running", containerStatuses=[{"name": "box", "state": {"running": {}}}])) == ""


def test_refusals_of_the_api_server_name_the_fix() -> None:
    assert isinstance(start_refusal(Refused(403, "Forbidden", "exceeded quota: boxes")), QuotaFull)
    assert "deploy check" in start_refusal(Refused(403, "Forbidden", "violates PodSecurity")).message
    assert "k8s/base" in start_refusal(Refused(404, "NotFound", "namespaces")).message


@pytest.mark.parametrize(
    ("amount", "found"), [("1Gi", 1024), ("512Mi", 512), ("1048576", 1), ("2Ti", 2097152), ("1G", 953)]
)
def test_quantities(amount: str, found: int) -> None:
    assert mib(amount) == found


def test_a_policy_that_is_not_enforced_is_found() -> None:
    targets = {"10.0.0.1 7070": "another box"}
    assert check.enforced({"10.0.0.1 7070": "unreachable"}, targets).verdict == "ok"
    assert check.enforced({"10.0.0.1 7070": "connected"}, targets).verdict == "fail"


@pytest.mark.parametrize(
    ("status", "word"), [(401, "expired"), (403, "service account"), (500, "answers 500"), (None, "does not answer")]
)
def test_why_a_cluster_cannot_be_asked(status: int | None, word: str) -> None:
    row = check.unreachable("https://c", "ns", status, "Timeout")
    assert word in f"{row.detail} {row.fix}"


def test_the_agents_image_is_the_same_bytes_for_the_same_program(tmp_path: Path) -> None:
    names = {write_agent_image(tmp_path / name) for name in ("a.tar", "b.tar")}
    assert names == {agent_image_reference()}
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
