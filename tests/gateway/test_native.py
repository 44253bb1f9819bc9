"""The native routes: rollouts, tools for a dataset row, metrics, description."""

import httpx
import pytest

from orchestrator.errors import SandboxLost, StartFailed
from orchestrator.interfaces import HostLoad
from orchestrator.models import Binding, RolloutKey, Task
from tests.gateway import fakes
from tests.gateway.conftest import Gateway
from tool_gateway.app import create_app

pytestmark = pytest.mark.anyio
CALL = {"name": "shell", "call_id": "c", "arguments": "{}", "trace_id": "t"}


async def test_a_rollouts_life(gateway: Gateway, client: httpx.AsyncClient) -> None:
    opened = await client.post("/rollouts", json={"task_id": "t1", "trace_id": "t"})
    assert opened.status_code == 201
    assert opened.json()["rollout"] | {"created_at": 0, "touched_at": 0} == {
        "job": "demo",
        "trace_id": "t",
        "task_id": "t1",
        "state": "open",
        "reason": "",
        "tainted": "",
        "host": "host-1",
        "created_at": 0,
        "touched_at": 0,
    }
    await client.post("/grade", json={"sample": {}, "item": {}, "trace_id": "t"})
    shown = (await client.get("/rollouts/t")).json()["rollout"]
    assert shown["reward"] == {
        "outcome": "scored",
        "score": 1.0,
        "reason": "as ordered",
        "sub_scores": {"f1": 0.5},
        "findings": [{"code": "seen", "detail": "a thing"}],
        "graded_at": 2.0,
    }
    assert (shown["calls"], shown["call_list"]) == (0, [])
    listed = (await client.get("/rollouts", params={"limit": 1})).json()["rollouts"]
    assert [line["trace_id"] for line in listed] == ["t"]


async def test_opening_twice_is_opening_once(client: httpx.AsyncClient) -> None:
    body = {"task_id": "t1", "trace_id": "t"}
    first, second = [(await client.post("/rollouts", json=body)).json() for _ in range(2)]
    assert first == second


async def test_without_a_trace_id_one_is_made(client: httpx.AsyncClient) -> None:
    made = {(await client.post("/rollouts", json={"task_id": "t1"})).json()["rollout"]["trace_id"] for _ in range(2)}
    assert len(made) == 2
    assert all(trace_id.startswith("trace_") for trace_id in made)


async def test_opening_a_bound_id_for_another_task_is_a_conflict_and_taints(
    gateway: Gateway, many: httpx.AsyncClient
) -> None:
    await many.post("/rollouts", json={"task_id": "t1", "trace_id": "t"})
    reply = await many.post("/rollouts", json={"task_id": "t2", "trace_id": "t"})
    assert (reply.status_code, reply.json()["error"]) == (409, "task_conflict")
    assert await gateway.tainted("t", "many")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"task_id": 7},
        {"task_id": ""},
        {"task_id": "t1", "trace_id": "a b"},
        {"task_id": "t1", "trace_id": "x" * 129},
        {"task_id": "t1", "image": "mine"},
        {"task_id": "t1", "runtime": "runc", "mounts": ["/"]},
        {"task_id": "unknown"},
    ],
    ids=str,
)
async def test_a_closed_schema(gateway: Gateway, client: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert (await client.post("/rollouts", json=body)).status_code == 422
    assert (await client.get("/rollouts")).json() == {"rollouts": []}


async def test_release_ends_it_and_may_be_repeated(gateway: Gateway, client: httpx.AsyncClient) -> None:
    await client.post("/rollouts", json={"task_id": "t1", "trace_id": "t"})
    for _ in range(2):
        reply = await client.delete("/rollouts/t")
        assert (reply.status_code, reply.content) == (204, b"")
    assert (await client.get("/rollouts/t")).json()["rollout"]["state"] == "released"


@pytest.mark.parametrize("trace_id", ["none", "a%20b", "%00", "x" * 200, "..%2f..", "%ff"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_no_such_rollout(client: httpx.AsyncClient, method: str, trace_id: str) -> None:
    reply = await client.request(method, f"/rollouts/{trace_id}")
    assert reply.status_code == 404


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1e3", "99999999999999999999", "٣"])
async def test_a_limit_out_of_bounds(client: httpx.AsyncClient, limit: str) -> None:
    reply = await client.get("/rollouts", params={"limit": limit})
    assert (reply.status_code, reply.json()["error"]) == (422, "bad_envelope")
    assert (await client.get("/rollouts", params={"limit": "1000"})).status_code == 200


async def test_a_failed_open_is_a_5xx_and_may_be_tried_again(gateway: Gateway) -> None:
    class Failing(fakes.FakeHost):
        async def open(self, rollout: RolloutKey, task: Task, *, timeout_s: float) -> Binding:
            raise StartFailed("no box could be made")

    async with gateway.but(cluster=fakes.FakeCluster([Failing(gateway.store)])).client() as client:
        assert (await client.post("/rollouts", json={"task_id": "t1", "trace_id": "t"})).status_code == 500
    async with gateway.client() as client:
        assert (await client.post("/rollouts", json={"task_id": "t1", "trace_id": "t"})).status_code == 201


async def test_tools_of_a_job_with_one_task_need_no_handle(client: httpx.AsyncClient) -> None:
    reply = await client.get("/tools")
    assert reply.json() == {"tools": [{"type": "function", "function": dict(fakes.schemas(fakes.task("t1"))[0])}]}


async def test_tools_of_a_job_with_many_ask_which_row(many: httpx.AsyncClient) -> None:
    reply = await many.get("/tools")
    assert reply.status_code == 422
    assert "task_id" in reply.json()["message"]
    assert (await many.get("/tools", params={"task_id": "unknown"})).status_code == 422
    function = (await many.get("/tools", params={"task_id": "t1"})).json()["tools"][0]["function"]
    assert function["parameters"]["required"] == ["command", "task_handle"]
    assert set(function["parameters"]["properties"]) == {"command", "task_handle"}


async def test_metrics_count_by_blame_with_closed_labels(gateway: Gateway, client: httpx.AsyncClient) -> None:
    await client.post("/tools", json=CALL)
    await client.post("/tools/anything-a-model-made-up", json=CALL | {"name": None, "call_id": "d"})
    await client.post("/grade", json={"sample": {}, "trace_id": "t"})
    await client.post("/tools", json=CALL | {"item": "row"})  # taints: it comes after the grade
    await client.get("/a-path-that-nobody-serves")
    text = (await client.get("/metrics")).text
    for line in (
        'tiltyard_calls_total{outcome="ok"} 2.0',
        'tiltyard_calls_total{outcome="caller_error"} 1.0',
        'tiltyard_grades_total{outcome="scored"} 1.0',
        "tiltyard_rollouts_tainted_total 1.0",
        'tiltyard_http_requests_total{route="/tools/{name}",status="2xx"} 1.0',
        'tiltyard_http_requests_total{route="unmatched",status="4xx"} 1.0',
        "tiltyard_rollouts_live 3.0",
        "tiltyard_rollouts_queued 2.0",
        'tiltyard_hosts{state="serving"} 1.0',
    ):
        assert line in text.splitlines()
    assert "made-up" not in text
    assert "nobody-serves" not in text


async def test_a_host_that_does_not_answer_does_not_stop_the_scrape(gateway: Gateway) -> None:
    async def gone() -> HostLoad:
        raise SandboxLost("no answer")

    hosts = [gateway.host, fakes.FakeHost(gateway.store, on_load=gone)]
    async with gateway.but(cluster=fakes.FakeCluster(hosts)).client() as client:
        lines = (await client.get("/metrics")).text.splitlines()
    assert 'tiltyard_hosts{state="unreachable"} 1.0' in lines
    assert "tiltyard_rollouts_live 3.0" in lines


async def test_the_description_names_the_security_of_every_route(gateway: Gateway, client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert described == create_app(gateway.deps).openapi()
    open_routes = {
        path
        for path, methods in described["paths"].items()
        for operation in methods.values()
        if operation["security"] == []
    }
    assert open_routes == {"/healthz", "/readyz"}
    assert described["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for path in ("/docs", "/redoc"):
        assert (await client.get(path)).status_code == 404
