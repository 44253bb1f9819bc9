"""What a box that nobody has yet is seeded with."""

# ruff: noqa: ASYNC240  (small local files, read at once)

import asyncio
import io
import os
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.agent.client import AgentClient
from orchestrator.errors import AgentProtocolError, SandboxError, SandboxLost
from orchestrator.models import Epoch
from tests.agent.conftest import ROLLOUT, until
from tests.agent.test_tcp import BOX, SIGNER, Pod, pod, signed_by_nobody, talk
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("root")]


def packed(*entries: tuple[str, str, bytes]) -> io.BytesIO:
    """(name, kind, content or target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if kind in ("x", "d") else 0o644
            entry.type = {"l": tarfile.SYMTYPE, "d": tarfile.DIRTYPE, "h": tarfile.LNKTYPE}.get(kind, tarfile.REGTYPE)
            if kind in ("l", "h"):
                entry.linkname = content.decode()
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    out.seek(0)
    return out


async def test_a_new_box_is_seeded_and_a_leased_one_is_not(short_path: Path) -> None:
    tree = (("src", "d", b""), ("src/run", "x", b"#!/bin/sh\n"), ("src/a", "f", b"a\n"), ("to", "l", b"/etc/passwd"))
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        await box.client.seed(packed(*tree), deadline=time.monotonic() + 10)
        owner = box.workspace.stat().st_uid
        assert (box.workspace / "src" / "run").stat().st_mode & 0o777 == 0o755
        assert os.readlink(box.workspace / "to") == "/etc/passwd"
        assert {path.lstat().st_uid for path in box.workspace.rglob("*")} == {owner}
        await box.client.lease(ROLLOUT, Epoch(1))
        with pytest.raises(SandboxError, match="before its lease"):
            await box.client.seed(packed(*tree), deadline=time.monotonic() + 10)


async def test_a_box_whose_image_holds_no_repository_says_so(short_path: Path) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        with pytest.raises(SandboxError, match="holds no repository at /tiltyard/seed"):
            await box.client.seed(None, deadline=later(box))


HOSTILE_SEEDS = {
    "through a link": (("out", "l", b"OUTSIDE"), ("out/seeded", "f", b"x")),
    "upwards": (("../seeded", "f", b"x"),),
    "absolute": (("/tmp/seeded", "f", b"x"),),
    "hard link": (("x", "f", b"x"), ("y", "h", b"x")),
    "no whole tar": None,
}


@pytest.mark.parametrize("entries", HOSTILE_SEEDS.values(), ids=HOSTILE_SEEDS.keys())
async def test_a_seed_stays_in_the_workspace(
    short_path: Path, entries: tuple[tuple[str, str, bytes], ...] | None
) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        outside = str(short_path).encode()
        within = [(name, kind, content.replace(b"OUTSIDE", outside)) for name, kind, content in entries or ()]
        body = packed(*within) if entries else io.BytesIO(b"x" * 700)
        with pytest.raises(SandboxError):
            await box.client.seed(body, deadline=time.monotonic() + 10)
        assert not (short_path / "seeded").exists()
        assert not Path("/tmp/seeded").exists()


TREE = (("src", "d", b""), ("src/run", "x", b"#!/bin/sh\n"), ("to", "l", b"src/run"), ("out", "l", b"/etc"))


def later(box: Pod) -> float:
    return time.monotonic() + 10


async def test_a_seed_may_come_again(short_path: Path) -> None:
    """Its reply may be lost: what is there already is replaced, links too, and a link to a folder is not gone through."""
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        for _ in range(2):
            await box.client.seed(packed(*TREE), deadline=later(box))
        await box.client.seed(packed(("to", "l", b"elsewhere"), ("out", "f", b"now a file")), deadline=later(box))
        assert os.readlink(box.workspace / "to") == "elsewhere"
        assert (box.workspace / "out").read_bytes() == b"now a file"
        assert {path.name for path in box.workspace.iterdir()} == {"src", "to", "out"}


async def test_a_link_does_not_replace_a_folder(short_path: Path) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        with pytest.raises(SandboxError, match="directory"):
            await box.client.seed(packed(("a/b", "f", b""), ("a", "l", b"/etc")), deadline=later(box))
        assert (box.workspace / "a" / "b").is_file()


async def test_a_seed_comes_as_bytes_and_in_parts(short_path: Path) -> None:
    async def parts(data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        await box.client.seed(packed(("whole", "f", b"1")).read(), deadline=later(box))
        await box.client.seed(parts(packed(("parts", "f", b"2")).read()), deadline=later(box))
        assert (box.workspace / "whole").read_bytes() + (box.workspace / "parts").read_bytes() == b"12"


async def test_a_large_seed_that_is_refused_is_a_refusal_and_no_loss(short_path: Path) -> None:
    """The agent answers before it reads."""
    large = packed(("large", "f", bytes(64 << 20)))
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        await box.client.lease(ROLLOUT, Epoch(1))
        with pytest.raises(SandboxError, match="before its lease") as refused:
            await box.client.seed(large, deadline=later(box))
        assert not isinstance(refused.value, SandboxLost)
        assert not list(box.workspace.iterdir())


async def test_a_seed_without_a_token_is_ours_to_mend(short_path: Path) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        stranger = box.another(signed_by_nobody)
        with pytest.raises(AgentProtocolError):
            await stranger.seed(packed(*TREE), deadline=later(box))
        await stranger.aclose()
        assert not list(box.workspace.iterdir())


async def test_a_seed_goes_into_the_workspace_and_nowhere_else(short_path: Path) -> None:
    token = f"Tiltyard-Token: {SIGNER.token(BOX, 0)}\r\n"
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        for path, status in (("/tmp", b"400"), ("src", b"400"), (".", b"200")):
            request = f"PUT /v1/seed?path={path} HTTP/1.1\r\nHost: a\r\n{token}Content-Length: 1024\r\n\r\n".encode()
            assert (await talk(box.port, request + bytes(1024))).split(b" ")[1] == status


async def test_nobody_takes_a_box_while_it_is_seeded(short_path: Path) -> None:
    """Else a command could race the seed."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        data = packed(*TREE).read()
        yield data[:700]
        begun.set()
        await go_on.wait()
        yield data[700:]

    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)
        seeding = asyncio.create_task(box.client.seed(slowly(), deadline=later(box)))
        await begun.wait()
        await until((box.workspace / "src").exists, "the seed begins")
        with pytest.raises(SandboxError, match="busy") as refused:
            await box.client.lease(ROLLOUT, Epoch(1))
        assert not isinstance(refused.value, SandboxLost)
        go_on.set()
        await seeding
        await box.client.lease(ROLLOUT, Epoch(1))


async def test_a_seed_whose_host_died_keeps_nobody_out(short_path: Path) -> None:
    async with pod(short_path) as box:
        await box.client.wait_ready(time.monotonic() + 10)

        async def never() -> AsyncIterator[bytes]:
            yield packed(*TREE).read()[:700]
            await asyncio.Event().wait()

        other: AgentClient = box.another(lambda epoch: SIGNER.token(BOX, epoch))
        seeding = asyncio.create_task(other.seed(never(), deadline=later(box)))
        await until((box.workspace / "src").exists, "the seed begins")
        await other.aclose()
        with pytest.raises(SandboxLost):
            await seeding
        deadline = time.monotonic() + 5
        while not await taken(box.client):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def taken(client: AgentClient) -> bool:
    try:
        await client.lease(ROLLOUT, Epoch(1))
    except SandboxError as error:
        if "busy" not in str(error):
            raise
        return False
    return True
