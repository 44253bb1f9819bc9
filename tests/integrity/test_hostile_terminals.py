"""C29: what a box printed reaches an operator's terminal and logs as letters, never as commands to a terminal or as log lines."""

import asyncio
import io
import json
import logging
import os
import pty
import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.cli.terminal import plain, printable
from orchestrator.models import FileChange, Finding, ToolReply
from orchestrator.store.sql import SqlStore
from orchestrator.telemetry import SecretRegistry, configure_logging
from tests.store.values import HOST, TASK, call, evidence, reward, rollout

pytestmark = pytest.mark.anyio

CORPUS = (
    "\x1b]0;owned\x07",  # title
    "\x1b]52;c;cm0gLXJmIC8=\x07",  # clipboard
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H\x1b[31mred",
    "\x1b[6n\x1b[c\x1b[>q",  # asks that a terminal answers into the shell's input
    "\x1bP+q544e\x1b\\",
    "\x1b_Gi=1\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\",
    "\x1bc\x1b(0\x1b#8",
    "\x9b31m\x9d0;owned\x9c\x90q\x9c\x85",
    "fine\rFAIL",
    "\x08\x08\x0b\x0c\x0e\x0f\x7f\x00\x05",
    "\u202eexe.txt\u2066x\u2069\u200f\u061c",
    "\ufeff\u200b\u2028\u2029\U000e0041",
    "[bold]markup[/bold] [link=http://evil.example]x[/link]",
)
SGR = re.compile(r"\x1b\[[0-9;]*m")
"""Colours, which the command line itself prints."""


def commands(text: str) -> list[str]:
    """Characters that a terminal would obey, or that a reader would not see. Line ends as a terminal writes them are none."""
    return sorted({repr(c) for c in SGR.sub("", text).replace("\r\n", "\n") if c not in "\n\t" and not c.isprintable()})


def test_the_look_sees_what_the_corpus_holds() -> None:
    assert all(commands(entry) for entry in CORPUS[:-1])
    assert commands("plain\ttext\r\n\x1b[1mbold\x1b[0m") == []


@pytest.mark.parametrize("entry", CORPUS)
def test_nothing_of_the_corpus_survives(entry: str) -> None:
    assert commands(plain(entry)) == []
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, width=200).print(printable(entry))
    assert commands(shown.getvalue()) == []


@given(st.binary(max_size=300))
def test_no_bytes_become_commands(data: bytes) -> None:
    for text in (data.decode("latin-1"), data.decode("utf-8", "surrogateescape")):
        assert "\x1b" not in plain(text)
        assert commands(plain(text)) == []


def test_letters_stay() -> None:
    assert plain("Grüße 世界 😀\n\tx") == "Grüße 世界 😀\n\tx"
    assert printable("a[b]c") == "a\\[b]c"


async def _record(url: str) -> None:
    """A rollout whose every text is the corpus."""
    words = " | ".join(CORPUS)
    of = rollout()
    async with SqlStore.open(url) as store:
        bound = await store.bind(of, TASK, HOST)
        for sequence, entry in enumerate(CORPUS, 1):
            hostile = replace(call(of, sequence), tool=entry, arguments_text=entry, reply=ToolReply(text=entry))
            await store.record(bound, hostile)
        change = FileChange(path=words, kind="added", type="file", mode=0o644, size_bytes=1, blob=None)
        found = (Finding(code="limit", detail=words),)
        await store.put_evidence(
            bound, replace(evidence(of, words), changes=(change,), submitted=(words,), findings=found)
        )
        await store.put_reward(bound, replace(reward(of), reason=words, findings=found, sub_scores={words: 0.5}))


async def _on_a_terminal(*arguments: str) -> tuple[int | None, str]:
    """Exit status of the command line, and all that it wrote to a terminal of its own."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "orchestrator.cli.main",
        *arguments,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
    )
    os.close(slave)
    parts = [part async for part in _read_all(master)]
    status = await process.wait()
    os.close(master)
    return status, b"".join(parts).decode()


async def _read_all(master: int) -> AsyncIterator[bytes]:
    while True:
        try:
            part = await asyncio.to_thread(os.read, master, 65_536)
        except OSError:  # how a terminal without writers ends
            return
        if not part:
            return
        yield part


@pytest.mark.parametrize("words", [["list"], ["show", "trace_0", "--job", "job"]], ids=lambda words: words[0])
async def test_a_hostile_rollout_cannot_command_the_operators_terminal(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "d").mkdir()
    await _record(f"sqlite+aiosqlite:///{tmp_path}/d/store.db")
    status, shown = await _on_a_terminal("rollouts", *words, "--state-dir", str(tmp_path), "--deployment", "d")
    assert status == 0, shown
    assert "trace_0" in shown
    assert commands(shown) == []
    if words[0] == "show":
        assert "owned" in shown, "the rest of a sequence shows as what it is"
        assert "[bold]markup[/bold]" in SGR.sub("", shown)


async def test_an_error_cannot_command_the_operators_terminal(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    await _record(f"sqlite+aiosqlite:///{tmp_path}/d/store.db")
    status, shown = await _on_a_terminal(
        "rollouts", "show", "none\x1b]0;owned\x07", "--job", "job", "--state-dir", str(tmp_path), "--deployment", "d"
    )
    assert status == 2
    assert "owned" in shown
    assert commands(shown) == []


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the process logs, as its `main` sets it up; undone afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging(SecretRegistry(), stream=stream)
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def test_a_log_line_stays_one_line_and_printable(log: io.StringIO) -> None:
    forged = 'x\r\n{"event": "grade", "score": 1.0}\n'
    for entry in (*CORPUS, forged):
        structlog.get_logger().warning("call", text=entry, **{"field\n": "x"})
        logging.getLogger("library").warning("said %s", entry)
    lines = log.getvalue().splitlines()
    assert len(lines) == 2 * (len(CORPUS) + 1)
    assert all(line.isascii() and commands(line) == [] for line in lines)
    assert json.loads(lines[-2])["text"] == forged
    assert "grade" not in {json.loads(line)["event"] for line in lines}
