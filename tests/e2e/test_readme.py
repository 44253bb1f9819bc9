"""The README's first task, typed as it stands there."""

import asyncio
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def state() -> Iterator[Path]:
    """Short: unix sockets below it have 107 bytes for their path."""
    with tempfile.TemporaryDirectory(prefix="ty-") as folder:
        yield Path(folder)


async def test_the_first_task_is_served_solved_and_graded(tmp_path: Path, state: Path) -> None:
    make, serve, *_ = blocks()
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    env = {**os.environ, "TILTYARD_STATE_DIR": str(state), "TILTYARD_DEPLOYMENT": "readme"}
    await asyncio.to_thread(shell, make, tmp_path, env)
    start, *requests = serve.strip().splitlines()
    server = await asyncio.create_subprocess_exec(
        "bash", "-c", "exec " + start.removesuffix(" &"), cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert b"serving on" in await asyncio.wait_for(server.stdout.readline(), 60)
        called, graded = [await asyncio.to_thread(shell, request, tmp_path, env) for request in requests]
        assert "return a + b" in called
        assert graded == '{"score": 1.0}'
        story = await asyncio.to_thread(shell, ".venv/bin/tiltyard rollouts show trace_1", tmp_path, env)
        assert "scored" in story
        assert "calc.py" in story
    finally:
        server.send_signal(signal.SIGTERM)
        await asyncio.wait_for(server.wait(), 60)
        await asyncio.to_thread(shell, ".venv/bin/tiltyard sweep", tmp_path, env)


async def test_a_token_file_as_the_readme_makes_it_is_accepted(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    make = next(block for block in blocks() if "token new" in block).splitlines()[0]
    await asyncio.to_thread(shell, make, tmp_path, dict(os.environ))
    from tool_gateway.auth import load_tokens

    assert load_tokens(tmp_path / "tokens.toml")


def test_the_readme_names_only_files_that_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
