"""One run of the suite per backend: its boxes are shared, as when an operator runs it."""

from collections.abc import AsyncIterator

import pytest

from orchestrator.conformance import Suite
from orchestrator.conformance.gaps import GAPS
from orchestrator.conformance.named import suite_spec
from tests.conformance.backends import ROWS, Row
from tests.needs import needs


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop for all checks over a backend."""
    return "asyncio"


@pytest.fixture(
    scope="module",
    params=[pytest.param(row, id=row.name, marks=needs(*row.needs) if row.needs else ()) for row in ROWS],
)
async def suite(request: pytest.FixtureRequest) -> AsyncIterator[Suite]:
    row: Row = request.param
    async with row.make() as backend, suite_spec(row.image) as spec:
        suite = Suite(backend, spec, GAPS.get(row.name, {}))
        yield suite
        left_behind = await suite.aclose()
        assert not left_behind, f"checks left boxes behind: {left_behind}"
        assert not await backend.owned()
