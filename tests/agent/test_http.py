"""The agent's HTTP surface under requests that no client of ours would send."""

import asyncio
import json
import os
import time
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agent.conftest import Box, OpenBox
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]

NOTE = {"type": "note", "data_b64": ""}


async def talk(box: Box, request: bytes, *, timeout_s: float = 15) -> bytes:
    """Send raw bytes; everything that comes back until the agent closes or is silent after a full reply."""
    reader, writer = await asyncio.open_unix_connection(box.config.socket)
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    lines = {"Host": "agent", "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def fenced(box: Box, **more: str) -> dict[str, str]:
    return {**box.client._fence, **more}


async def ask(box: Box, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, object]]:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = await talk(box, request(method, path, data, fenced(box, **headers)))
    head, _, content = reply.partition(b"\r\n\r\n")
    assert b"Tiltyard-Protocol: 2" in head
    assert b"Tiltyard-Boot: " in head
    return int(head.split(b" ")[1]), json.loads(content)


def op_path(box: Box, number: int = 0) -> str:
    return f"/v1/ops/{box.header().key}/{number}?wait_s=5"


def call_for(path: str, **changes: object) -> dict[str, object]:
    return {"key": path.split("/")[3], "sequence": 1, "tool": "t", "arguments": {}, **changes}


async def test_a_right_request_is_answered(box: Box) -> None:
    path = op_path(box)
    status, body = await ask(box, "PUT", path, {"op": NOTE, "call": call_for(path)})
    assert (status, body["state"]) == (200, "done")


BAD_BODIES: dict[str, object] = {
    "no JSON": b"{",
    "a list": [],
    "null": None,
    "no op": {},
    "unknown field": {"op": NOTE, "more": 1},
    "unknown field of op": {"op": {**NOTE, "more": 1}},
    "other case": {"op": {"type": "note", "Data_b64": ""}},
    "unknown type": {"op": {"type": "mount"}},
    "type of wrong type": {"op": {"type": 3}},
    "no data": {"op": {"type": "note"}},
    "no base64": {"op": {"type": "note", "data_b64": "!"}},
    "path of wrong type": {"op": {"type": "read", "path": ["a"]}},
    "path null": {"op": {"type": "read", "path": None}},
    "negative offset": {"op": {"type": "read", "path": "a", "offset_bytes": -1}},
    "limit over the maximum": {"op": {"type": "read", "path": "a", "limit_bytes": 1 << 21}},
    "fraction": {"op": {"type": "read", "path": "a", "limit_bytes": 1.5}},
    "huge number": b'{"op":{"type":"read","path":"a","offset_bytes":1e400}}',
    "NaN": b'{"op":{"type":"exec","argv":["a"],"timeout_s":NaN}}',
    "zero time-out": {"op": {"type": "exec", "argv": ["a"], "timeout_s": 0}},
    "no argv": {"op": {"type": "exec", "argv": [], "timeout_s": 1}},
    "argv of numbers": {"op": {"type": "exec", "argv": [1], "timeout_s": 1}},
    "env of numbers": {"op": {"type": "exec", "argv": ["a"], "timeout_s": 1, "env": {"A": 1}}},
    "env name": {"op": {"type": "exec", "argv": ["a"], "timeout_s": 1, "env": {"A=B": ""}}},
    "principal root": {"op": {"type": "exec", "argv": ["a"], "timeout_s": 1, "principal": "root"}},
    "principal negative": {"op": {"type": "exec", "argv": ["a"], "timeout_s": 1, "principal": -1}},
    "mode setuid": {"op": {"type": "write", "path": "a", "data_b64": "", "mode": 0o4755}},
    "no hash": {"op": {"type": "write", "path": "a", "data_b64": "", "expected_sha256": "x"}},
    "deep": b'{"op":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two values": b'{"op":{"type":"note","data_b64":""}} {}',
    "not UTF-8": b'{"op":{"type":"note","data_b64":"\xff"}}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_bodies_that_do_not_fit_are_refused(box: Box, body: object) -> None:
    path = op_path(box)
    if isinstance(body, dict):
        body = {**body, "call": call_for(path)}
    status, reply = await ask(box, "PUT", path, body)
    assert (status, reply["error"]) == (400, "bad_request")
    assert reply.keys() == {"error", "message"}
    assert (await ask(box, "GET", path))[0] == 404, "nothing began"


@pytest.mark.parametrize(
    "call",
    [
        {"key": "other"},
        {"sequence": -1},
        {"sequence": "1"},
        {"arguments": []},
        {"arguments": None},
        {"tool": "t" * 300},
        {"more": 1},
    ],
    ids=str,
)
async def test_headers_of_calls_are_checked(box: Box, call: dict[str, object]) -> None:
    path = op_path(box)
    assert (await ask(box, "PUT", path, {"op": NOTE, "call": call_for(path, **call)}))[0] == 400
    assert (await ask(box, "PUT", path, {"op": NOTE}))[0] == 400, "operation 0 needs its call"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/ops/a b/0",
        "/v1/ops/ä/0",
        f"/v1/ops/{'k' * 65}/0",
        "/v1/ops/k/-1",
        "/v1/ops/k/00",
        "/v1/ops/k/1e3",
        "/v1/ops/k/9999999",
        "/v1/ops/k/0?wait_s=61",
        "/v1/ops/k/0?wait_s=NaN",
        "/v1/ops/k/0?wait_s=-1",
    ],
)
async def test_paths_are_checked(box: Box, path: str) -> None:
    quoted = path.replace(" ", "%20").replace("ä", "%C3%A4")
    assert (
        await ask(box, "PUT", quoted, {"op": NOTE, "call": {"key": "k", "sequence": 1, "tool": "t", "arguments": {}}})
    )[0] == 400


async def test_unknown_places_and_methods(box: Box) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/none"),
        ("TRACE", "/v1/health"),
        ("POST", "/debug/pprof/"),
        ("GET", "/v1/ops/k"),
    ):
        reply = await talk(box, request(method, path, headers=fenced(box)))
        assert reply.split(b" ")[1] in (b"404", b"405"), path


@pytest.mark.parametrize("epoch", ["", "x", "-1", "1.0", "99999999999999999999"])
async def test_requests_without_a_right_epoch_are_refused(box: Box, epoch: str) -> None:
    headers = {"Tiltyard-Rollout": box.client._fence["Tiltyard-Rollout"], "Tiltyard-Epoch": epoch}
    reply = await talk(box, request("POST", "/v1/ack", b'{"calls":[]}', headers))
    assert reply.split(b" ")[1] == b"400"
    assert b" 409 " in await talk(
        box, request("POST", "/v1/ack", b'{"calls":[]}', {"Tiltyard-Rollout": "other", "Tiltyard-Epoch": "1"})
    )


async def test_bodies_are_counted_not_believed(box: Box) -> None:
    path = op_path(box)
    told = request("PUT", path, headers=fenced(box, **{"Content-Length": str(5 << 20)}))
    assert b" 413 " in (await talk(box, told))[:20]
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    head = request("PUT", path, headers=fenced(box)).replace(
        b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"
    )
    reply = await talk(box, head + chunk * 5 + b"0\r\n\r\n")
    assert reply == b"" or b" 413 " in reply[:20]
    assert (await ask(box, "GET", "/v1/health"))[0] == 200


async def test_long_headers_are_refused(box: Box) -> None:
    reply = await talk(box, request("GET", "/v1/health", headers={"X-Long": "x" * 100_000}))
    assert reply == b"" or b" 431 " in reply[:20]


async def test_slow_headers_are_cut_off(box: Box) -> None:
    """Connections that do not come to their point are closed; beside them the agent answers."""
    held = [await asyncio.open_unix_connection(box.config.socket) for _ in range(3)]
    began = time.monotonic()
    for (_, writer), start in zip(held, (b"GET /v1/health HTTP/1.1\r\nX: ", b"GET ", b""), strict=True):
        writer.write(start)
    assert (await ask(box, "GET", "/v1/health"))[0] == 200
    try:
        async with asyncio.timeout(10):
            await asyncio.gather(*(reader.read() for reader, _ in held))
    finally:
        for _, writer in held:
            writer.close()
    assert time.monotonic() - began > 4, "the control: not at once"


async def test_more_connections_than_allowed_wait_and_harm_nobody(open_box: OpenBox) -> None:
    async with open_box() as box:
        held = [await asyncio.open_unix_connection(box.config.socket) for _ in range(300)]
        descriptors = len(os.listdir(f"/proc/{box.agent_pid}/fd"))
        assert descriptors < 300
        for _, writer in held:
            writer.close()
        assert (await ask(box, "GET", "/v1/health"))[0] == 200


METHODS = st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"])
SEGMENTS = st.sampled_from(
    [
        "v1",
        "ops",
        "health",
        "lease",
        "ack",
        "put",
        "get",
        "delta",
        "stream",
        "k",
        "0",
        "1",
        "..",
        "%2e%2e",
        "%00",
        "?wait_s=0",
        "?path=a",
    ]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([".", "..", "/etc/passwd", "/proc/1/environ", "a\0b", "\ud800", "AA==", "f/" * 50, "[", "**", "(a*)*", "trusted", "absent"]),
)  # fmt: skip
NAMES = st.sampled_from(
    [
        *(
            "op",
            "call",
            "type",
            "path",
            "pattern",
            "argv",
            "cwd",
            "env",
            "stdin_b64",
            "timeout_s",
            "output_limit_bytes",
        ),
        *(
            "principal",
            "events",
            "data_b64",
            "mode",
            "parents",
            "old",
            "new",
            "depth",
            "limit",
            "glob",
            "key",
            "sequence",
        ),
        *("tool", "arguments", "calls", "rollout", "epoch", "root", "paths", "max_bytes", "manifest", "max_entries"),
    ]
)
KINDS = st.sampled_from(["read", "write", "edit", "list", "glob", "search", "note"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=12
)
OPERATIONS = st.builds(lambda kind, more: {**more, "type": kind}, KINDS, st.dictionaries(NAMES, LEAVES, max_size=6))
BODIES = st.one_of(
    st.binary(max_size=200),
    VALUES.map(lambda value: json.dumps(value).encode()),
    OPERATIONS.map(
        lambda op: json.dumps({"op": op, "call": {"key": "k", "sequence": 1, "tool": "t", "arguments": {}}}).encode()
    ),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=METHODS, segments=st.lists(SEGMENTS, max_size=5), body=BODIES, direct=st.booleans())
async def test_fuzzing_finds_no_crash(box: Box, method: str, segments: list[str], body: bytes, direct: bool) -> None:
    """Whatever comes, the same agent answers: no panic, no detail, nothing but its closed vocabulary."""
    path = f"/v1/ops/{os.urandom(4).hex()}/0?wait_s=5" if direct else "/" + "/".join(segments)
    if direct:
        body = body.replace(b'"k"', f'"{path.split("/")[3]}"'.encode())
    reply = await talk(box, request("PUT" if direct else method, path, body, fenced(box)))
    if direct or method != "HEAD":
        assert reply.startswith(b"HTTP/1.1 "), reply
        assert reply.split(b" ")[1] != b"500", reply
    for secret in (b"goroutine", b".go:", b"root:x:0"):
        assert secret not in reply
    assert box.process.returncode is None
