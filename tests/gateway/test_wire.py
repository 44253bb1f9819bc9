"""The literal bodies of the RFT wire, and their replies byte by byte."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from orchestrator.models import CallRequest, JobId, RolloutKey, ToolReply, TraceId, call_key
from tests.gateway.conftest import ONE, Gateway
from tool_gateway.rft import MAX_OUTPUT_BYTES

pytestmark = pytest.mark.anyio
GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


async def test_a_tool_call_in_the_documented_form(gateway: Gateway, client: httpx.AsyncClient) -> None:
    reply = await client.post("/tools", content=golden("tool_call.json"))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.content == (
        b'{"type":"function_call_output","call_id":"call_123","id":"fc_123",'
        b'"output":"search_catalog {\\"query\\":\\"Urban Puffer\\",\\"top_k\\":3}"}'
    )
    request, task = gateway.host.calls[0]
    rollout = RolloutKey(job=JobId(ONE), trace_id=TraceId("trace_1a2b3c..."))
    assert request.rollout == rollout
    assert request.key == call_key(rollout, "call_123", "search_catalog", '{"query":"Urban Puffer","top_k":3}')
    assert task.id == "t1"


async def test_the_debug_form_with_keys_that_mean_nothing_here(gateway: Gateway, client: httpx.AsyncClient) -> None:
    reply = await client.post("/tools/search", content=golden("tool_run.json"))
    assert reply.status_code == 200
    assert "secret-of-the-trainer" not in repr(gateway.host.calls)


async def test_the_smallest_call(gateway: Gateway, client: httpx.AsyncClient) -> None:
    reply = await client.post("/tools/search", json={"arguments": '{"query":"x"}', "trace_id": "t"})
    assert reply.json() == {"type": "function_call_output", "call_id": "", "id": "", "output": 'search {"query":"x"}'}


@pytest.mark.parametrize(
    ("path", "name", "called"),
    [
        ("/tools", "shell", "shell"),
        ("/tools", "functions.shell", "shell"),
        ("/tools/shell", None, "shell"),
        ("/tools/shell/shell", None, "shell"),
        ("/tools/base/shell", None, "shell"),
        ("/tools/other", "shell", "shell"),
        ("/tools/", "shell", "shell"),
        ("/jobs/demo/tools", "shell", "shell"),
        ("/jobs/demo/tools/shell", "", "shell"),
        ("/jobs/demo/tools/shell/shell/", None, "shell"),
    ],
)
async def test_every_url_style(
    gateway: Gateway, client: httpx.AsyncClient, path: str, name: str | None, called: str
) -> None:
    body = {"arguments": "{}", "trace_id": "t"} | ({} if name is None else {"name": name})
    assert (await client.post(path, json=body)).status_code == 200
    assert gateway.host.calls[0][0].tool == called


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"b":1, "a":"é"}', '{"a":"é","b":1}'),
        ({"b": 1, "a": "é"}, '{"a":"é","b":1}'),
        ("", "{}"),
        (None, "{}"),
        ("{not json", "{not json"),
        ('{"x": NaN}', '{"x": NaN}'),
        ('{"x": 1e999}', '{"x": 1e999}'),
        ("[1]", "[1]"),
        ([1], "[1]"),
        (7, "7"),
        ('{"x":"\\ud800"}', '{"x":"\ufffd"}'),
        ('{"x":"\\ud83d\\ude00"}', '{"x":"😀"}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
async def test_what_the_host_gets_as_arguments(
    gateway: Gateway, client: httpx.AsyncClient, arguments: object, text: str
) -> None:
    body = json.dumps({"name": "shell", "arguments": arguments, "trace_id": "t"})
    assert (await client.post("/tools", content=body)).status_code == 200
    assert gateway.host.calls[0][0].arguments_text == text


async def test_the_same_call_twenty_times_at_once_runs_once(gateway: Gateway, client: httpx.AsyncClient) -> None:
    everyone_came = asyncio.Event()

    async def slow(request: CallRequest) -> ToolReply:
        await everyone_came.wait()
        return ToolReply(text="done once")

    gateway.host.on_call = slow
    sent = [asyncio.create_task(client.post("/tools", content=golden("tool_call.json"))) for _ in range(20)]
    for _ in sent:
        await gateway.host.arrivals.acquire()  # each comes through to the host
    everyone_came.set()
    replies = await asyncio.gather(*sent)
    assert gateway.host.runs == 1
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    again = await client.post("/tools", content=golden("tool_call.json"))
    assert again.content == replies[0].content
    assert gateway.host.runs == 1


async def test_calls_without_a_call_id_are_never_merged(gateway: Gateway, client: httpx.AsyncClient) -> None:
    body = {"name": "shell", "id": "fc_1", "arguments": "{}", "trace_id": "t"}
    for _ in range(2):
        assert (await client.post("/tools", json=body)).status_code == 200
    assert gateway.host.runs == 2


async def test_arguments_as_string_and_as_object_are_the_same_call(gateway: Gateway, client: httpx.AsyncClient) -> None:
    for arguments in ('{"a": 1, "b": 2}', {"b": 2, "a": 1}):
        body = {"name": "shell", "call_id": "c", "arguments": arguments, "trace_id": "t"}
        assert (await client.post("/tools", json=body)).status_code == 200
    assert gateway.host.runs == 1


@pytest.mark.parametrize("character", ["x", "\x00", "😀", "é", "\ud800"])
async def test_an_output_of_any_kind_stays_below_the_trainers_limit(
    gateway: Gateway, client: httpx.AsyncClient, character: str
) -> None:
    async def much(request: CallRequest) -> ToolReply:
        return ToolReply(text="first" + character * 2_000_000 + "last")

    gateway.host.on_call = much
    reply = await client.post("/tools", content=golden("tool_call.json"))
    assert reply.status_code == 200
    assert len(reply.content) <= MAX_OUTPUT_BYTES
    output = reply.json()["output"]
    assert output.startswith("first")
    assert output.endswith("last")
    assert "characters left out" in output


@pytest.mark.parametrize(
    ("name", "answer"),
    [("grade.json", "the answer"), ("grade_reduced.json", "short"), ("grade_unfinished.json", "")],
)
async def test_a_grade_in_the_documented_forms(
    gateway: Gateway, client: httpx.AsyncClient, name: str, answer: str
) -> None:
    reply = await client.post("/grade", content=golden(name))
    assert (reply.status_code, reply.content) == (200, b'{"score": 1.0}')
    assert gateway.host.grades[0][0].final_answer == answer


@pytest.mark.parametrize(
    ("sample", "answer"),
    [
        (None, ""),
        ({}, ""),
        ({"output_text": "a", "choices": [{"message": {"content": "b"}}]}, "a"),
        ({"output_text": "", "choices": [{"message": {"content": "b"}}]}, "b"),
        ({"output_text": 7, "choices": [{"message": {"content": "b"}}]}, "b"),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": "c"}]}]}, "c"),
        ({"output": [{"type": "reasoning", "content": [{"text": "thought"}]}]}, ""),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "d"}, {"type": "image"}]}}]}, "d"),
        ({"choices": []}, ""),
        ({"choices": "x", "output": "y"}, ""),
        ({"output_text": "\ud800"}, "\ufffd"),
    ],
)
async def test_where_the_final_answer_is_found(
    gateway: Gateway, client: httpx.AsyncClient, sample: object, answer: str
) -> None:
    reply = await client.post("/grade", content=json.dumps({"sample": sample, "item": {}, "trace_id": "t"}))
    assert reply.status_code == 200
    assert gateway.host.grades[0][0].final_answer == answer
