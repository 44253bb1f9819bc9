"""The literal bodies of the RFT wire form, sent by curl to a real server over a real engine."""

import asyncio
import json
import subprocess
from collections.abc import Callable

import pytest

from tests.e2e.harness import MENDED, Server, Trainer
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio]


async def curl(url: str, body: object) -> dict[str, object]:
    command = ["curl", "-sS", url, "-H", "Content-Type: application/json", "-H", "Accept: application/json"]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True, timeout=120
    )
    parsed: dict[str, object] = json.loads(done.stdout)
    return parsed


async def test_a_tool_call_and_a_grade_as_a_trainer_sends_them(server: Server) -> None:
    trace = "trace_0f8fad5bd9cb469fa16570867728950e"
    call = {
        "type": "function_call",
        "id": "fc_123",
        "call_id": "call_123",
        "name": "shell",
        "arguments": '{"command":"sed -i s/-/+/ calc.py; cat calc.py"}',
        "trace_id": trace,
        "item": {"task_id": "calc-tests"},
    }
    reply = await curl(f"{server.url}/tools", call)
    assert {key: reply[key] for key in ("type", "call_id", "id")} == {
        "type": "function_call_output",
        "call_id": "call_123",
        "id": "fc_123",
    }
    assert "return a + b" in str(reply["output"])
    grade = {
        "sample": {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "…", "tool_calls": []},
                    "finish_reason": "stop",
                }
            ],
            "output_text": "…",
            "output_json": None,
            "output_tools": [{"id": "call_x", "type": "function", "function": {"name": "search", "arguments": "{…}"}}],
            "output_reasoning_summary": None,
        },
        "item": {
            "messages": [
                {"name": None, "role": "developer", "content": "…"},
                {"name": None, "role": "user", "content": "…"},
            ],
            "tools": None,
            "parallel_tool_calls": True,
            "reference_answer": "…",
            "task_id": "calc-tests",
        },
        "trace_id": trace,
    }
    assert await curl(f"{server.url}/grade", grade) == {"score": 1.0}
    assert await curl(f"{server.url}/grade", grade) == {"score": 1.0}


@pytest.mark.parametrize("path", ["/tools", "/tools/shell", "/tools/shell/shell", "/jobs/default/tools"])
async def test_every_url_style_reaches_the_tool(server: Server, path: str) -> None:
    body = {"arguments": '{"command":"echo hi"}', "name": "shell", "item": {"task_id": "calc-tests"}}
    reply = await curl(server.url + path, body | {"trace_id": "trace_style" + path.replace("/", "_")})
    assert "hi" in str(reply["output"])


async def test_the_same_call_twenty_times_at_once_runs_once(server: Server, trainer: Callable[..., Trainer]) -> None:
    player = trainer(server)
    command = "echo run >> count; sleep 0.5; wc -l < count"
    outputs = await asyncio.gather(*(player.call("same", "shell", command=command) for _ in range(20)))
    assert len(set(outputs)) == 1
    assert (await player.call("after", "shell", command="cat count")).count("run") == 1


async def test_an_unsolved_rollout_earns_the_floor_and_a_solved_one_the_top(
    server: Server, trainer: Callable[..., Trainer]
) -> None:
    lazy, expert = trainer(server), trainer(server)
    await lazy.call("1", "list_dir", path=".")
    await expert.call("1", "write_file", path="calc.py", content=MENDED)
    assert await asyncio.gather(lazy.grade(), expert.grade()) == [0.0, 1.0]


async def test_the_future_is_not_in_the_box(server: Server, trainer: Callable[..., Trainer]) -> None:
    player = trainer(server)
    seen = await player.call("1", "shell", command="git log --all -p; git cat-file --batch-all-objects --batch-check")
    assert "Add calc" in seen
    assert "FUTURE-MARK" not in seen
    assert "return a + b" not in seen


async def test_a_list_of_files_is_graded_by_f1(server: Server, trainer: Callable[..., Trainer]) -> None:
    right, half = trainer(server, "calc-files"), trainer(server, "calc-files")
    await right.call("1", "submit", files=["calc.py"])
    await half.call("1", "submit", files=["calc.py", "README.md"])
    assert await right.grade() == 1.0
    assert await half.grade() == pytest.approx(2 / 3)


async def test_ten_first_calls_at_once_make_one_box(server: Server, trainer: Callable[..., Trainer]) -> None:
    player = trainer(server)
    before = set(server.boxes())
    await asyncio.gather(*(player.call(f"c{n}", "shell", command=f"echo {n} >> seen") for n in range(10)))
    assert len(set(server.boxes()) - before) == 1
    lines = (await player.call("all", "shell", command="sort -n seen")).split()
    assert [line for line in lines if line.isdigit()] == [str(n) for n in range(10)]
