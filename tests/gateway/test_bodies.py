"""Bodies from anybody: size counted while streaming, slow senders, compression, malformed JSON, depth, numbers."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from orchestrator.errors import CallerError, TooLarge, TooSlow
from tests.gateway.conftest import Gateway
from tool_gateway.bodies import DRAIN_BYTES, MAX_BODY_BYTES, MAX_DEPTH, parse_json, parse_object, read_body
from tool_gateway.rft import well_formed

pytestmark = pytest.mark.anyio
CALL = {"name": "shell", "arguments": "{}", "trace_id": "t"}


def body_of(size: int) -> bytes:
    """A valid call of exactly `size` bytes."""
    bare = json.dumps(CALL | {"item": {"pad": ""}}).encode()
    return bare.replace(b'"pad": ""', b'"pad": "' + b"x" * (size - len(bare)) + b'"')


async def test_the_limit_is_exact(client: httpx.AsyncClient) -> None:
    fits, over = body_of(MAX_BODY_BYTES), body_of(MAX_BODY_BYTES + 1)
    assert (len(fits), len(over)) == (MAX_BODY_BYTES, MAX_BODY_BYTES + 1)
    assert (await client.post("/tools", content=fits)).status_code == 200
    reply = await client.post("/tools", content=over)
    assert (reply.status_code, reply.json()["error"]) == (413, "too_large")
    assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/tools", "/grade", "/rollouts"])
async def test_two_megabytes_are_too_much_everywhere(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path, content=b"x" * 2_000_000)).status_code == 413


async def test_chunks_without_a_length_are_counted(client: httpx.AsyncClient) -> None:
    async def chunks(total: int) -> AsyncIterator[bytes]:
        body = body_of(total)
        for start in range(0, total, 10_000):
            yield body[start : start + 10_000]

    assert (await client.post("/tools", content=chunks(MAX_BODY_BYTES))).status_code == 200
    assert (await client.post("/tools", content=chunks(MAX_BODY_BYTES + 1))).status_code == 413


@pytest.mark.parametrize("declared", ["0", "10", "-1", "x", str(10**12)])
async def test_a_declared_length_is_not_believed(client: httpx.AsyncClient, declared: str) -> None:
    headers = {"Content-Length": declared}
    assert (await client.post("/tools", content=body_of(MAX_BODY_BYTES + 1), headers=headers)).status_code == 413
    assert (await client.post("/tools", content=body_of(1000), headers=headers)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
async def test_compressed_bodies_are_refused_unread(client: httpx.AsyncClient, encoding: str) -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    reply = await client.post("/tools", content=bomb, headers={"Content-Encoding": encoding})
    assert (reply.status_code, reply.json()["error"]) == (415, "unsupported_encoding")
    plain = await client.post("/tools", json=CALL, headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


def request_of(*chunks: bytes, stall: bool = False) -> tuple[Request, list[int]]:
    """A request whose body comes in `chunks`, and what was taken of it."""
    left = list(chunks)
    taken: list[int] = []

    async def receive() -> Message:
        if not left and stall:
            await asyncio.Event().wait()
        chunk = left.pop(0)
        taken.append(len(chunk))
        return {"type": "http.request", "body": chunk, "more_body": bool(left) or stall}

    return Request({"type": "http", "method": "POST", "headers": []}, receive), taken


async def test_a_body_that_does_not_end_is_not_waited_for() -> None:
    request, _ = request_of(b"{", stall=True)
    with pytest.raises(TooSlow):
        await read_body(request, deadline_s=0.01)


async def test_an_endless_body_is_dropped_for_a_while_and_then_left() -> None:
    chunk = b"x" * 65_536
    request, taken = request_of(*[chunk] * 1000)
    with pytest.raises(TooLarge):
        await read_body(request)
    assert DRAIN_BYTES < sum(taken) <= DRAIN_BYTES + len(chunk)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"7",
        b"{",
        b"{}x",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a": "\n"}',
        b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"a":' * 100_000,
        b"[" * 500_000,
        b"{\x00}",
        '{"trace_id": "t"}'.encode("utf-16"),
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_what_is_no_json_object_is_a_400_in_words(
    gateway: Gateway, client: httpx.AsyncClient, body: bytes
) -> None:
    for path in ("/tools", "/grade", "/rollouts"):
        reply = await client.post(path, content=body)
        assert (reply.status_code, reply.json()["error"]) == (400, "bad_request")
        assert "body" in reply.json()["message"]
    assert gateway.host.calls == []


def test_depth_is_of_values_and_not_of_brackets_in_text() -> None:
    assert parse_object(json.dumps({"a": "[" * 10_000}).encode())
    assert parse_object(json.dumps({"a": [{} for _ in range(10_000)]}).encode())
    inside = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert parse_object(b'{"a": ' + inside + b"}")
    with pytest.raises(CallerError, match="deeper"):
        parse_object(b'{"a": [' + inside + b"]}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_every_json_value_comes_through_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.binary())
def test_any_bytes_are_an_object_or_a_400(data: bytes) -> None:
    try:
        made = parse_object(data)
    except CallerError as error:
        status = error.status
    else:
        status = 200
        assert isinstance(made, dict)
    assert status in (200, 400)


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_becomes_text_that_utf8_can_hold(text: str) -> None:
    made = well_formed(text)
    made.encode()
    assert well_formed(made) == made
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "\ufffd" in made or len(made) < len(text)
    else:
        assert made == text
