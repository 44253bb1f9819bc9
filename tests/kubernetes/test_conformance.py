"""The suite over pods, each known gap strict. The other forms (gVisor, restricted) are proved by `tiltyard doctor --conformance kubernetes`."""

import os

import pytest

from orchestrator.conformance import Outcome, line, run_named
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import backend_over
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("kubernetes", "root"), pytest.mark.cluster, pytest.mark.timeout(1200)]

FORMS = {
    "kubernetes": {},
    "kubernetes-gvisor": {"runtime_class": "gvisor"},
    "kubernetes-restricted": {"security": "restricted"},
}
QUICK = {
    "kubernetes": ("exec", "isolation", "limits", "life"),
    "kubernetes-gvisor": ("exec",),
    "kubernetes-restricted": ("exec",),
}
"""Groups of each form that every run proves, since a pod takes two seconds to come and two to go; all with TILTYARD_KUBE_WHOLE=1."""


@pytest.mark.parametrize("subject", FORMS)
async def test_pods_conform_but_for_known_gaps(cluster: Cluster, subject: str) -> None:
    groups = () if os.environ.get("TILTYARD_KUBE_WHOLE") else QUICK[subject]
    told: list[str] = []
    async with backend_over(**FORMS[subject]) as backend:
        runtime = subject.removeprefix("kubernetes").removeprefix("-")
        report = await run_named(
            backend, runtime=runtime, groups=groups, on_result=lambda result: told.append(line(result))
        )
    wrong = [text for text, result in zip(told, report.results, strict=True) if result.outcome not in FINE]
    assert not wrong, "\n".join(wrong)
    assert not report.left_behind
    assert not cluster.pods()


FINE = (Outcome.PASSED, Outcome.XFAILED)
