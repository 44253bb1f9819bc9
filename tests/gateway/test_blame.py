"""The status says whose fault it was (D7); what was answered 4xx on a trainer's route is never scored; nobody sees a traceback."""

import asyncio
import json
import math
from collections.abc import Iterator

import httpx
import pytest
from structlog.testing import capture_logs

from orchestrator import errors
from orchestrator.errors import TiltyardError
from orchestrator.models import (
    CallRequest,
    GradeRequest,
    JobId,
    Outcome,
    Reward,
    RewardRange,
    RolloutKey,
    Task,
    ToolReply,
    TraceId,
)
from tests.gateway import fakes
from tests.gateway.conftest import Gateway, Opener, ready
from tool_gateway import trainer
from tool_gateway.rft import render_score

pytestmark = pytest.mark.anyio
CALL = {"name": "shell", "call_id": "c", "arguments": "{}", "trace_id": "t", "item": {}}
GRADE = {"sample": {"output_text": "x"}, "item": {}, "trace_id": "t"}


def every_error(root: type[TiltyardError] = TiltyardError) -> Iterator[type[TiltyardError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from every_error(kind)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
async def test_a_call_answers_by_blame(gateway: Gateway, client: httpx.AsyncClient, kind: type[TiltyardError]) -> None:
    async def fail(request: CallRequest) -> ToolReply:
        raise kind("what to do about it")

    gateway.host.on_call = fail
    reply = await client.post("/tools", json=CALL)
    assert reply.status_code == kind.status
    if kind.status == 200:
        assert reply.json()["output"] == "Error: what to do about it"
    else:
        assert reply.json() == {"error": kind.reason, "message": "what to do about it"}
    assert reply.status_code != 429
    assert ("retry-after" in reply.headers) == (kind.status >= 500)
    assert bool(await gateway.tainted("t")) == (400 <= kind.status < 500)


@pytest.mark.parametrize("kind", list(every_error()), ids=lambda kind: kind.__name__)
async def test_a_grade_never_makes_a_score_of_a_failure(
    gateway: Gateway, client: httpx.AsyncClient, kind: type[TiltyardError]
) -> None:
    async def fail(request: GradeRequest) -> Reward:
        raise kind("not today")

    gateway.host.on_grade = fail
    reply = await client.post("/grade", json=GRADE)
    assert reply.status_code == (kind.status if kind.status >= 400 else 500)
    assert "score" not in reply.json()


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf, 1e308, 1.5, -0.1])
async def test_a_score_that_is_none_is_not_given_out(
    gateway: Gateway, client: httpx.AsyncClient, score: float | None
) -> None:
    class Unchecked(fakes.FakeHost):
        async def grade(self, request: GradeRequest, task: Task, *, timeout_s: float) -> Reward:
            return fakes.reward(request.rollout, score)

    changed = gateway.but(cluster=fakes.FakeCluster([Unchecked(gateway.store)]))
    async with changed.client() as other:
        reply = await other.post("/grade", json=GRADE)
    assert (reply.status_code, reply.json()["error"]) == (500, "grader_failed")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
async def test_no_range_makes_an_infinite_score_one_to_give_out(score: float) -> None:
    rollout = RolloutKey(job=JobId("j"), trace_id=TraceId("t"))
    anything = RewardRange(low=-math.inf, high=math.inf)
    with pytest.raises(errors.GraderError):
        render_score(fakes.reward(rollout, score), anything)
    assert render_score(fakes.reward(rollout, -8.5), anything) == b'{"score": -8.5}'


@pytest.mark.parametrize("score", [0.0, 0.25, 1.0])
async def test_a_score_is_the_whole_reply(gateway: Gateway, client: httpx.AsyncClient, score: float) -> None:
    async def order(request: GradeRequest) -> Reward:
        return fakes.reward(request.rollout, score, Outcome.AGENT_FAULT)

    gateway.host.on_grade = order
    reply = await client.post("/grade", json=GRADE)
    assert reply.json() == {"score": score}
    assert (await client.post("/grade", json=GRADE)).content == reply.content


async def test_the_unexpected_is_a_500_with_an_id_and_no_traceback(gateway: Gateway, client: httpx.AsyncClient) -> None:
    async def fail(request: CallRequest) -> ToolReply:
        raise ZeroDivisionError("/root/secret/path.py")

    gateway.host.on_call = fail
    with capture_logs() as logs:
        reply = await client.post("/tools", json=CALL)
    assert reply.status_code == 500
    assert reply.json()["error"] == "internal"
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    (entry,) = [log for log in logs if log["event"] == "unexpected_error"]
    assert entry["incident"] in reply.json()["message"]
    assert isinstance(entry["exc_info"], ZeroDivisionError)
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_a_host_that_forgets_the_time_is_not_waited_for(
    gateway: Gateway, open_client: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = asyncio.Event()

    async def forget(request: CallRequest) -> ToolReply:
        await forgotten.wait()
        return ToolReply(text="late")

    gateway.host.on_call = forget
    hasty = await open_client(gateway.but(call_timeout_s=0.05 - trainer.BACKSTOP_S))
    reply = await hasty.post("/tools", json=CALL)
    assert (reply.status_code, reply.json()["error"]) == (503, "still_running")
    forgotten.set()
    patient = await open_client(gateway)
    joined = await patient.post("/tools", json=CALL)
    assert joined.json()["output"] == "late"
    assert gateway.host.runs == 1


async def test_hosts_get_less_time_than_the_trainer_has(gateway: Gateway, client: httpx.AsyncClient) -> None:
    await client.post("/tools", json=CALL)
    await client.post("/grade", json=GRADE)
    assert all(0 < timeout_s + trainer.BACKSTOP_S < 600 for timeout_s in gateway.host.timeouts)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 7},
        {"name": None},
        {"call_id": 7},
        {"id": ["x"]},
        {"call_id": "x" * 300},
        {"item": "row"},
        {"item": {"task_id": 7}},
        {"item": {"task_id": "unknown"}},
    ],
    ids=json.dumps,
)
async def test_a_callers_mistake_is_a_4xx_and_the_rollout_is_never_scored(
    gateway: Gateway, client: httpx.AsyncClient, change: dict[str, object]
) -> None:
    reply = await client.post("/tools", json=CALL | change)
    assert reply.status_code == 422
    assert await gateway.tainted("t")
    assert not await gateway.tainted("other")
    assert gateway.host.calls == []


@pytest.mark.parametrize("change", [{"sample": "x"}, {"item": []}, {"item": {"task_id": "unknown"}}], ids=json.dumps)
async def test_a_callers_mistake_in_a_grade(
    gateway: Gateway, client: httpx.AsyncClient, change: dict[str, object]
) -> None:
    assert (await client.post("/grade", json=GRADE | change)).status_code == 422
    assert await gateway.tainted("t")
    assert gateway.host.grades == []


@pytest.mark.parametrize(
    "trace_id",
    [None, "", "a b", "../x", "a/b", "x" * 129, "é", "a\n", "\x00", 7, ["t"], {"a": 1}, "\ud800", "a;b", "%2e"],
    ids=repr,
)
async def test_a_missing_or_hostile_trace_id(gateway: Gateway, client: httpx.AsyncClient, trace_id: object) -> None:
    for path in ("/tools", "/grade"):
        reply = await client.post(path, content=json.dumps(CALL | GRADE | {"trace_id": trace_id}))
        assert (reply.status_code, reply.json()["error"]) == (400, "bad_request")
        assert "trace_id" in reply.json()["message"]
    assert gateway.host.calls == []


@pytest.mark.parametrize("trace_id", ["t", "trace_" + "0" * 32, "x" * 128, "A-b_c.d:e", ".."])
async def test_an_opaque_trace_id_of_the_safe_kind_is_taken(client: httpx.AsyncClient, trace_id: str) -> None:
    assert (await client.post("/tools", json=CALL | {"trace_id": trace_id})).status_code == 200


async def test_a_taint_that_cannot_be_stored_is_no_4xx(gateway: Gateway, client: httpx.AsyncClient) -> None:
    """Else the model would see the 4xx, go on, and be scored."""
    await gateway.store.aclose()
    reply = await client.post("/tools", json=CALL | {"item": "row"})
    assert reply.status_code == 500


async def test_requests_without_a_right_taint_nothing(gateway: Gateway) -> None:
    for name in (None, "old", "grade", "nowhere"):
        async with gateway.client(name) as stranger:
            reply = await stranger.post("/tools", json=CALL | {"item": "row"})
            assert reply.status_code in (401, 403, 404)
    assert not await gateway.tainted("t")


@pytest.mark.parametrize(("job", "status"), [("typo", 404), ("many", 404)])
async def test_a_wrong_job_in_the_url_marks_the_tokens_own_rollout_only(
    gateway: Gateway, client: httpx.AsyncClient, job: str, status: int
) -> None:
    """Else a grader's URL that is right would have a rollout scored whose every tool call was a 404."""
    assert (await client.post(f"/jobs/{job}/tools", json=CALL)).status_code == status
    assert "unknown_job" in await gateway.tainted("t")
    assert not await gateway.tainted("t", "many")


async def test_a_job_that_is_not_named_marks_every_job_it_may_be(gateway: Gateway) -> None:
    async with gateway.client("all") as client:
        assert (await client.post("/tools", json=CALL)).status_code == 400
        assert (await client.post("/tools", content=b"{")).status_code == 400
    assert await gateway.tainted("t")
    assert await gateway.tainted("t", "many")


async def test_unknown_routes_and_methods_have_the_same_shape(client: httpx.AsyncClient) -> None:
    missing = await client.get("/nothing/here")
    assert (missing.status_code, missing.json()["error"]) == (404, "not_found")
    method = await client.put("/grade", json={})
    assert (method.status_code, method.json()["error"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"


async def test_readiness_says_why_not(gateway: Gateway, open_client: Opener) -> None:
    async def draining() -> None:
        raise errors.Draining("this gateway is shutting down")

    reply = await (await open_client(gateway.but(ready=draining))).get("/readyz")
    assert (reply.status_code, reply.json()["error"]) == (503, "draining")
    reply = await (await open_client(gateway.but(ready=ready))).get("/readyz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ready"})
