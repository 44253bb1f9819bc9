"""The real server as a child process: started, waited for, stopped."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.errors import TiltyardError

ANNOUNCED = re.compile(r"serving on (http://\S+)")
START_S = 60.0
STOP_S = 60.0


@asynccontextmanager
async def running(arguments: Sequence[str], env: Mapping[str, str], log: Path) -> AsyncIterator[str]:
    """`tiltyard serve ARGUMENTS` with its log in a file; yields its URL. Raises TiltyardError with the log's tail when it does not start."""
    command = [sys.executable, "-m", "orchestrator.cli.main", "serve", *arguments]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **env}, stdout=asyncio.subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    try:
        yield await _address(process, log)
    finally:
        await _stop(process)


async def _address(process: asyncio.subprocess.Process, log: Path) -> str:
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            async for line in process.stdout:
                if match := ANNOUNCED.search(line.decode(errors="replace")):
                    return match[1]
    said = await asyncio.to_thread(log.read_text, errors="replace")
    raise TiltyardError(f"the server did not start; the end of its log:\n{said[-2000:]}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
