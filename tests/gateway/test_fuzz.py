"""What the description allows, and much that it does not, generated and sent to every route of a real server."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.conftest import bearer, make_gateway
from tests.gateway.test_auth import every_route
from tests.gateway.test_server import serve
from tool_gateway.app import create_app
from tool_gateway.server import BoundedProtocol


def no_unpromised_server_error(ctx: Any, response: Any, case: Any) -> bool | None:
    """A rollout that an earlier example tainted answers 500 `rollout_closed`, as it must; every other 5xx is a fault."""
    if response.status_code == 500 and response.json().get("error") == "rollout_closed":
        return None
    return not_a_server_error(ctx, response, case)


CHECKS = [no_unpromised_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 20
"""Per route and mode: a few seconds for all of them."""


@asynccontextmanager
async def described_server(folder: Path) -> AsyncIterator[schemathesis.BaseSchema]:
    async with make_gateway(folder) as gateway, serve(gateway, BoundedProtocol) as serving:
        schema = schemathesis.openapi.from_dict(create_app(gateway.deps).openapi())
        schema.config.update(base_url=f"http://127.0.0.1:{serving.port}")
        yield schema


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    server = described_server(tmp_path_factory.mktemp("fuzz"))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server) as made:
        yield made


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), list(every_route()), ids=str)
def test_every_route_keeps_its_word(
    schema: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    sent = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def check(case: schemathesis.Case[Any]) -> None:
        nonlocal sent
        case.call_and_validate(headers=bearer("one"), checks=CHECKS)
        sent += 1

    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
        return  # nothing of such a route can be wrong
    check()
    assert sent
