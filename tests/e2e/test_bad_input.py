"""Bad input through the real server over the real engine: who is to blame decides the answer, and nothing is lost."""

import asyncio
import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.harness import Server, Trainer, serving
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio, pytest.mark.timeout(240)]


async def send(session: aiohttp.ClientSession, url: str, data: bytes | str | object) -> tuple[int, str]:
    raw = data if isinstance(data, bytes | str) else json.dumps(data)
    body = io.BytesIO(raw.encode() if isinstance(raw, str) else raw)
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        return response.status, await response.text()


def envelope(
    trace: str, name: str = "shell", arguments: object = '{"command": "echo fine"}', **more: object
) -> dict[str, object]:
    return {
        "call_id": f"c-{trace}",
        "name": name,
        "arguments": arguments,
        "trace_id": trace,
        "item": {"task_id": "calc-tests"},
    } | more


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("no_such_tool", "{}", "no_such_tool"),
        ("shell", "not json", "JSON"),
        ("shell", "[1]", "object"),
        ("shell", '{"command": 7}', "command"),
        ("shell", "{}", "command"),
        ("shell", '{"command": "true", "timeout_s": NaN}', ""),
        ("read_file", '{"path": "../../etc/passwd"}', "Error"),
        ("read_file", '{"path": "/proc/1/environ"}', "Error"),
        ("read_file", '{"path": "nothing-here"}', "not"),
        ("write_file", '{"path": "/etc/passwd", "content": "x"}', "Error"),
    ],
)
async def test_the_models_mistake_is_text_it_can_mend(
    server: Server, session: aiohttp.ClientSession, name: str, arguments: str, told: str
) -> None:
    trace = "trace_mistakes"
    body = envelope(trace, name, arguments, call_id=f"{name}-{arguments}")
    status, text = await send(session, f"{server.url}/tools", body)
    assert status == 200, text
    assert told in json.loads(text)["output"]
    status, text = await send(session, f"{server.url}/tools", envelope(trace, call_id="control"))
    assert (status, "fine" in text) == (200, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"trace_id": NaN}', 400),
        (b"[]", 422),
        (json.dumps({"name": "shell", "arguments": "{}"}).encode(), 400),
        (json.dumps(envelope("../../etc")).encode(), 400),
        (json.dumps(envelope("a" * 1000)).encode(), 400),
        (json.dumps(envelope("trace_big", arguments=json.dumps({"command": "x" * 2_000_000}))).encode(), 413),
        (json.dumps(envelope("trace_no_task", item={"task_id": "no-such-task"})).encode(), 422),
    ],
)
async def test_the_callers_mistake_is_a_4xx_in_words(
    server: Server, session: aiohttp.ClientSession, body: bytes, status: int
) -> None:
    seen, text = await send(session, f"{server.url}/tools", body)
    assert seen in (status, 400, 422), text
    assert (seen == 413) == (status == 413)
    assert json.loads(text)["message"]
    assert "Traceback" not in text


async def test_a_rollout_that_was_answered_4xx_is_never_scored(server: Server, session: aiohttp.ClientSession) -> None:
    trace = "trace_conflict"
    assert (await send(session, f"{server.url}/tools", envelope(trace)))[0] == 200
    other = envelope(trace, call_id="other", item={"task_id": "calc-files"})
    assert (await send(session, f"{server.url}/tools", other))[0] == 409
    grade = {"sample": {"output_text": ""}, "item": {"task_id": "calc-tests"}, "trace_id": trace}
    status, text = await send(session, f"{server.url}/grade", grade)
    assert status >= 500
    assert "score" not in json.loads(text)


async def test_many_tasks_and_an_empty_item_ask_for_the_handle(server: Server, session: aiohttp.ClientSession) -> None:
    status, text = await send(session, f"{server.url}/tools", envelope("trace_empty", item={}))
    assert status == 200
    assert "task_handle" in text


async def test_a_grade_without_calls_and_a_call_after_the_grade(server: Server, session: aiohttp.ClientSession) -> None:
    trace = "trace_zero"
    grade = {"sample": {"output_text": ""}, "item": {"task_id": "calc-tests"}, "trace_id": trace}
    assert json.loads((await send(session, f"{server.url}/grade", grade))[1]) == {"score": 0.0}
    assert json.loads((await send(session, f"{server.url}/grade", grade))[1]) == {"score": 0.0}
    status, _ = await send(session, f"{server.url}/tools", envelope(trace))
    assert status >= 500


async def test_files_that_are_none_are_refused(server: Server, trainer: Callable[..., Trainer]) -> None:
    player = trainer(server)
    make = "ln -s /etc/passwd link; ln -s . dir; mkfifo fifo; printf '\\000\\377' > binary"
    await player.call("make", "shell", command=make)
    for path in ("link", "dir/calc.py", "fifo", "/dev/zero"):
        assert "Error" in await player.call(f"read {path}", "read_file", path=path), path
        assert "Error" in await player.call(f"write {path}", "write_file", path=path, content="x"), path
    assert "binary" in (await player.call("binary", "read_file", path="binary")).lower()
    assert "def add" in await player.call("control", "read_file", path="calc.py")


async def test_floods_bombs_and_sleepers_end_and_the_box_answers_on(
    server: Server, trainer: Callable[..., Trainer]
) -> None:
    player = trainer(server)
    flood = await player.call("yes", "shell", command="yes", timeout_s=2)
    assert len(flood) < 100_000
    assert "time" in flood
    slow = await player.call("sleep", "shell", command="(setsid sleep 1000 &) ; trap '' TERM; sleep 1000", timeout_s=1)
    assert "time" in slow
    assert "0" in await player.call("left", "shell", command="pgrep -c sleep")
    await player.call("bomb", "shell", command=":(){ :|:& };:", timeout_s=3)
    assert "fine" in await player.call("after", "shell", command="echo fine")


async def test_an_agent_that_dies_by_a_command_costs_the_floor(server: Server, trainer: Callable[..., Trainer]) -> None:
    player = trainer(server)
    await player.call("mend", "write_file", path="calc.py", content="def add(a, b):\n    return a + b\n")
    await player.call("kill", "shell", command="kill -9 1; kill -9 -1; echo still here")
    assert "fine" in await player.call("after", "shell", command="echo fine")
    hog = "import os\nfor _ in range(60):\n if os.fork() == 0:\n  x = bytearray(40_000_000)\n  import time; time.sleep(60)\ntime.sleep(5)"
    await player.call("hog", "shell", command=f"python3 -c '{hog}'", timeout_s=10)
    score = await player.grade()
    assert score in (0.0, 1.0)  # the box may survive a hog; what it may not do is hang or fail the grade


async def test_a_connection_closed_mid_call_changes_nothing(
    server: Server, session: aiohttp.ClientSession, trainer: Callable[..., Trainer]
) -> None:
    player = trainer(server)
    await player.call("open", "shell", command="true")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await player.call("slow", "shell", command="sleep 2; echo ran >> log; echo done")
    assert "done" in await player.call("slow", "shell", command="sleep 2; echo ran >> log; echo done")
    assert (await player.call("count", "shell", command="cat log")).count("ran") == 1


async def test_a_full_disk_is_the_models_to_mend(server: Server, trainer: Callable[..., Trainer]) -> None:
    player = trainer(server)
    full = await player.call("fill", "shell", command="head -c 200M /dev/zero > big; ls -s big")
    assert "No space left" in full
    assert "Error" in await player.call("write", "write_file", path="more.txt", content="x" * 100_000)
    await player.call("free", "shell", command="rm big")
    assert "Error" not in await player.call("again", "write_file", path="more.txt", content="x" * 100_000)
    assert await player.grade() == 0.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "tiltyard/no-such-image:1"}, "image"),
        ({"repo": "/no/such/repository"}, "repo"),
        ({"commit": "0" * 40}, "commit"),
    ],
)
async def test_what_is_missing_is_named_and_never_scored(
    tmp_path: Path, rows: list[dict[str, object]], session: aiohttp.ClientSession, change: dict[str, object], told: str
) -> None:
    async with serving(tmp_path, [rows[0] | change]) as broken:
        status, text = await send(session, f"{broken.url}/tools", envelope("trace_missing"))
        assert status >= 400
        assert told in text.lower()
        grade = {"sample": {"output_text": ""}, "item": {}, "trace_id": "trace_missing"}
        status, text = await send(session, f"{broken.url}/grade", grade)
        assert status >= 400
        assert "score" not in json.loads(text)
        await broken.stop()
        assert await broken.settled() == []


async def test_an_engine_that_is_not_there_is_said_at_the_start(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    with pytest.raises(AssertionError, match=r"(?i)engine"):
        async with serving(tmp_path, rows, DOCKER_HOST="unix:///no/such/engine.sock"):
            pass


async def test_a_state_folder_too_deep_for_sockets_is_said_at_the_start(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    with pytest.raises(AssertionError, match="shorter TILTYARD_STATE_DIR"):
        async with serving(tmp_path, rows, state=tmp_path / ("d" * 60)):
            pass
