"""Which task a rollout works on (D10): every source, their order, and what happens when they disagree or lie."""

import httpx
import pytest

from orchestrator.errors import CallerError, Misconfigured, TaskConflict, UnknownJob, UnknownTask
from orchestrator.models import CallRequest, HostId, JobId, RolloutKey, Task, TaskId, ToolReply, TraceId
from tests.gateway import fakes
from tests.gateway.conftest import MANY, ONE, SECRET, Gateway
from tool_gateway.auth import Principal, Scope
from tool_gateway.handles import Handles
from tool_gateway.routing import ASK_FOR_HANDLE, FORGED_HANDLE, ModelMistake, Sources, choose_job, choose_task

JOB = fakes.job(MANY, "t1", "t2")
T1, T2 = TaskId("t1"), TaskId("t2")


def chosen(**sources: object) -> Task | ModelMistake:
    return choose_task(JOB, Sources(**({"bound": None, "named": None} | sources)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sources", "task"),
    [
        ({"named": "t1"}, T1),
        ({"bound": T1}, T1),
        ({"bound": T1, "named": "t1"}, T1),
        ({"handle": "h", "claimed": T2}, T2),
        ({"bound": T1, "handle": "h", "claimed": T1}, T1),
        ({"named": "t1", "handle": "h", "claimed": T1}, T1),
    ],
)
def test_sources_that_agree(sources: dict[str, object], task: TaskId) -> None:
    assert chosen(**sources) == JOB.tasks[task]


@pytest.mark.parametrize(
    ("sources", "mistake"),
    [
        ({}, ASK_FOR_HANDLE),
        ({"handle": "forged"}, FORGED_HANDLE),
        ({"handle": 7}, FORGED_HANDLE),
        ({"handle": "h", "claimed": T2, "bound": T1}, FORGED_HANDLE),
        ({"handle": "h", "claimed": T2, "named": "t1"}, FORGED_HANDLE),
        ({"handle": "forged", "bound": T1}, FORGED_HANDLE),
    ],
)
def test_what_the_model_got_wrong_is_told_to_the_model(sources: dict[str, object], mistake: ModelMistake) -> None:
    assert chosen(**sources) is mistake


@pytest.mark.parametrize(
    ("sources", "error"),
    [
        ({"named": "t3"}, UnknownTask),
        ({"named": ""}, UnknownTask),
        ({"bound": T1, "named": "t2"}, TaskConflict),
        ({"bound": TaskId("gone")}, Misconfigured),
        ({"bound": T1, "named": "t2", "handle": "forged"}, TaskConflict),
    ],
)
def test_what_the_trainer_got_wrong_is_the_callers(sources: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        chosen(**sources)


def test_a_job_with_one_task_needs_no_source() -> None:
    job = fakes.job(ONE, "only")
    assert choose_task(job, Sources(bound=None, named=None)) == job.tasks[TaskId("only")]


def principal(*jobs: str) -> Principal:
    return Principal(name="p", scopes=frozenset(Scope), jobs=frozenset(map(JobId, jobs)))


def test_the_job_comes_from_the_url_or_from_the_token() -> None:
    served = fakes.jobs(fakes.job("a", "t"), fakes.job("b", "t"))
    anyone = Principal(name="p", scopes=frozenset(Scope), jobs=None)
    assert choose_job(principal("a"), served, None).id == "a"
    assert choose_job(principal("a", "not-served"), served, None).id == "a"
    assert choose_job(principal("a", "b"), served, "b").id == "b"
    assert choose_job(anyone, served, "b").id == "b"
    assert choose_job(anyone, fakes.jobs(fakes.job("a", "t")), None).id == "a"
    with pytest.raises(CallerError, match="/jobs/JOB/"):
        choose_job(anyone, served, None)


def test_foreign_and_missing_jobs_look_the_same() -> None:
    served = fakes.jobs(fakes.job("a", "t"), fakes.job("b", "t"))
    answers = []
    for path in ("b", "missing"):
        with pytest.raises(UnknownJob) as refused:
            choose_job(principal("a"), served, path)
        answers.append(refused.value.message)
    assert len(set(answers)) == 1
    with pytest.raises(UnknownJob):
        choose_job(principal("missing"), served, None)


class TestHandles:
    handles = Handles(SECRET, fakes.jobs(JOB, fakes.job(ONE, "t1")))

    def test_each_task_has_its_own_and_it_verifies(self) -> None:
        made = {task: self.handles.make(JobId(MANY), task) for task in (T1, T2)}
        assert len(set(made.values())) == 2
        assert {task: self.handles.verify(JobId(MANY), handle) for task, handle in made.items()} == {T1: T1, T2: T2}

    def test_it_is_the_same_after_a_restart(self) -> None:
        again = Handles(SECRET, fakes.jobs(JOB))
        assert again.verify(JobId(MANY), self.handles.make(JobId(MANY), T1)) == T1

    def test_it_does_not_tell_the_task(self) -> None:
        named = fakes.job(MANY, "django-12345", "t2")
        assert "django" not in Handles(SECRET, fakes.jobs(named)).make(JobId(MANY), TaskId("django-12345"))

    def test_another_jobs_handle_for_the_same_task_is_refused(self) -> None:
        assert self.handles.verify(JobId(MANY), self.handles.make(JobId(ONE), T1)) is None

    def test_another_secrets_handle_is_refused(self) -> None:
        other = Handles(b"another secret of thirty-two bytes!!", fakes.jobs(JOB))
        assert self.handles.verify(JobId(MANY), other.make(JobId(MANY), T1)) is None

    def test_every_changed_character_is_refused(self) -> None:
        handle = self.handles.make(JobId(MANY), T1)
        for index in range(len(handle)):
            changed = handle[:index] + ("0" if handle[index] != "0" else "1") + handle[index + 1 :]
            assert self.handles.verify(JobId(MANY), changed) is None

    @pytest.mark.parametrize("value", [None, 7, "", [], {"a": 1}, "th1_", "th1_" + "0" * 16 + "_" + "0" * 32, "é"])
    def test_nonsense_is_refused(self, value: object) -> None:
        assert self.handles.verify(JobId(MANY), value) is None

    def test_parts_of_two_handles_do_not_fit_together(self) -> None:
        _, lookup, _ = self.handles.make(JobId(MANY), T1).split("_")
        _, _, mac = self.handles.make(JobId(MANY), T2).split("_")
        assert self.handles.verify(JobId(MANY), f"th1_{lookup}_{mac}") is None

    @pytest.mark.parametrize("secret", [b"", bytes(range(31)), b" " * 40, b"changeme" * 4])
    def test_a_weak_secret_is_refused(self, secret: bytes) -> None:
        with pytest.raises(Misconfigured, match="32 bytes"):
            Handles(secret, {})
        Handles(b" \n" + bytes(range(30)), {})


CALL = {"name": "shell", "call_id": "c", "arguments": "{}", "trace_id": "t"}


async def exported_handle(many: httpx.AsyncClient, task: str) -> str:
    reply = await many.get("/tools", params={"task_id": task})
    (tool,) = reply.json()["tools"]
    parameters = tool["function"]["parameters"]
    assert "task_handle" in parameters["required"]
    handle = parameters["properties"]["task_handle"]["const"]
    assert isinstance(handle, str)
    return handle


@pytest.mark.anyio
class TestOverHttp:
    async def test_nothing_says_which_task_so_the_model_is_asked(
        self, gateway: Gateway, many: httpx.AsyncClient
    ) -> None:
        reply = await many.post("/tools", json=CALL)
        assert reply.status_code == 200
        assert "task_handle" in reply.json()["output"]
        assert gateway.host.calls == []
        assert not await gateway.tainted("t", MANY)

    async def test_an_exported_handle_binds_and_is_taken_out(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        arguments = {"task_handle": await exported_handle(many, "t2"), "command": "ls"}
        assert (await many.post("/tools", json=CALL | {"arguments": arguments})).status_code == 200
        request, task = gateway.host.calls[0]
        assert (task.id, request.arguments_text) == ("t2", '{"command":"ls"}')
        await many.post("/tools", json=CALL | {"call_id": "d"})
        assert gateway.host.calls[1][1].id == "t2", "bound on first use"

    async def test_a_forged_handle_is_told_and_found_once_and_taints_nothing(
        self, gateway: Gateway, many: httpx.AsyncClient
    ) -> None:
        forged = (await exported_handle(many, "t1"))[:-1] + "!"
        for call_id in ("a", "b"):
            body = CALL | {"call_id": call_id, "arguments": {"task_handle": forged}}
            reply = await many.post("/tools", json=body)
            assert reply.status_code == 200
            assert "not valid" in reply.json()["output"]
        rollout = RolloutKey(job=JobId(MANY), trace_id=TraceId("t"))
        assert [code for code, _ in await gateway.store.findings(rollout)] == ["forged_task_handle"]
        assert gateway.host.calls == []
        assert not await gateway.tainted("t", MANY)

    async def test_another_rows_handle_does_not_move_a_bound_rollout(
        self, gateway: Gateway, many: httpx.AsyncClient
    ) -> None:
        await many.post("/tools", json=CALL | {"item": {"task_id": "t1"}})
        other = {"task_handle": await exported_handle(many, "t2")}
        reply = await many.post("/tools", json=CALL | {"call_id": "d", "arguments": other})
        assert "not valid" in reply.json()["output"]
        assert len(gateway.host.calls) == 1

    async def test_the_row_names_the_task(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        await many.post("/tools", json=CALL | {"item": {"task_id": "t2"}})
        assert gateway.host.calls[0][1].id == "t2"

    @pytest.mark.parametrize("remembered", [True, False], ids=["same gateway", "another gateway"])
    async def test_another_row_later_is_a_conflict_and_taints(
        self, gateway: Gateway, many: httpx.AsyncClient, remembered: bool
    ) -> None:
        await many.post("/tools", json=CALL | {"item": {"task_id": "t1"}})
        async with gateway.client("many") as other:
            later = many if remembered else other
            reply = await later.post("/tools", json=CALL | {"call_id": "d", "item": {"task_id": "t2"}})
        assert (reply.status_code, reply.json()["error"]) == (409, "task_conflict")
        assert "task_conflict" in await gateway.tainted("t", MANY)

    async def test_two_first_calls_with_two_rows_race(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        """Neither sees a binding; the host's first-wins decides, and the loser is the caller's error."""
        rollout = RolloutKey(job=JobId(MANY), trace_id=TraceId("t"))

        class Late(fakes.FakeHost):
            async def call(self, request: CallRequest, task: Task, *, timeout_s: float) -> ToolReply:
                await self.store.bind(rollout, T2, HostId("host-1"))
                return await super().call(request, task, timeout_s=timeout_s)

        raced = gateway.but(cluster=fakes.FakeCluster([Late(gateway.store)]))
        async with raced.client("many") as client:
            reply = await client.post("/tools", json=CALL | {"item": {"task_id": "t1"}})
        assert reply.status_code == 409
        assert await gateway.tainted("t", MANY)

    async def test_a_grade_may_come_first_and_binds_by_its_row(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        body = {"sample": {"output_text": "x"}, "item": {"task_id": "t2"}, "trace_id": "t"}
        assert (await many.post("/grade", json=body)).json() == {"score": 1.0}
        assert gateway.host.grades[0][1].id == "t2"

    async def test_a_grade_of_nobody_knows_what(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        reply = await many.post("/grade", json={"sample": {}, "item": {}, "trace_id": "t"})
        assert (reply.status_code, reply.json()["error"]) == (422, "unknown_task")
        assert "task_id" in reply.json()["message"]
        assert await gateway.tainted("t", MANY)

    async def test_a_grade_with_another_row_is_a_conflict(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        await many.post("/tools", json=CALL | {"item": {"task_id": "t1"}})
        reply = await many.post("/grade", json={"sample": {}, "item": {"task_id": "t2"}, "trace_id": "t"})
        assert reply.status_code == 409
        assert gateway.host.grades == []
        assert await gateway.tainted("t", MANY)

    async def test_the_row_may_be_empty_once_bound(self, gateway: Gateway, many: httpx.AsyncClient) -> None:
        await many.post("/rollouts", json={"task_id": "t2", "trace_id": "t"})
        await many.post("/tools", json=CALL | {"item": {}})
        await many.post("/grade", json={"sample": {}, "item": {}, "trace_id": "t"})
        assert gateway.host.calls[0][1].id == gateway.host.grades[0][1].id == "t2"

    async def test_jobs_do_not_share_rollouts(self, gateway: Gateway) -> None:
        async with gateway.client("all") as both:
            for job in (ONE, MANY):
                await both.post(f"/jobs/{job}/tools", json=CALL | {"item": {"task_id": "t1"}})
        assert {request.rollout.job for request, _ in gateway.host.calls} == {ONE, MANY}
        assert len({request.key for request, _ in gateway.host.calls}) == 2
