"""Every promise, over every backend, each as a test of its own. Known gaps are strict: one that closes fails."""

import pytest

from orchestrator.conformance import Check, Outcome, Suite, checks

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", [pytest.param(check, id=check.id) for check in checks()])
async def test_backend_conforms(suite: Suite, check: Check) -> None:
    result = await suite.run(check)
    if result.outcome is Outcome.XFAILED:
        pytest.xfail(result.text)
    assert result.outcome is Outcome.PASSED, f"{check.sentence}\n{result.text}"
