"""`tiltyard demo`: make the tasks, serve them, play, and hold every reward against what it must be."""

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.backends.local.settings import HOST_IMAGE
from orchestrator.cli.contradictions import check_settings
from orchestrator.cli.demo import server
from orchestrator.cli.demo.cast import cast
from orchestrator.cli.demo.play import Played, play_all
from orchestrator.cli.demo.tasks import HISTORY, IMAGE, NEW, Source, fetch_source, measured_ids, task_rows, write_tasks
from orchestrator.cli.terminal import table as new_table
from orchestrator.cli.terminal import wide
from orchestrator.cli.tokens import entry
from orchestrator.cli.wiring import engine, show
from orchestrator.settings import Settings
from orchestrator.telemetry import SecretRegistry, configure_logging
from tool_gateway.auth import new_token

MEASURE_S = 600.0
SCOPES = ["tools", "grade", "rollouts"]


def run(settings: Settings) -> int:
    """Exit status: 0 when every reward is what it must be and nothing is left. Raises Misconfigured, EngineUnavailable with the fix."""
    check_settings(settings)
    console = wide()
    return asyncio.run(_demo(settings, console))


async def _demo(settings: Settings, console: Console) -> int:
    folder = settings.deployment_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.log").open("a", encoding="utf-8") as log:
        configure_logging(SecretRegistry(), level=settings.log_level, stream=log)
        return await _play(settings, console, folder)


async def _play(settings: Settings, console: Console, folder: Path) -> int:
    async with engine(settings) as made:
        show(made.notices)
    columns = (TextColumn("{task.description:38}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        step = progress.add_task("fetching the releases", total=1)
        source = await asyncio.to_thread(fetch_source, folder)
        progress.advance(step)
        step = progress.add_task("finding test ids by running them", total=1)
        tasks = await _tasks(settings, folder, source)
        progress.advance(step)
        actors = cast(source)
        step = progress.add_task("playing rollouts", total=len(actors))
        token, tokens = _token_file(folder)
        arguments = ["--tasks", str(tasks), "--tokens", str(tokens), "--port", "0", "--accept-old-runc"]
        async with server.running(arguments, _environment(settings), folder / "server.log") as url:
            played = await play_all(url, token, actors, lambda: progress.advance(step))
    left = await leftovers(settings)
    console.print(table(played))
    return _verdict(console, played, left, folder)


def _environment(settings: Settings) -> dict[str, str]:
    return {
        "TILTYARD_DEPLOYMENT": settings.deployment,
        "TILTYARD_STATE_DIR": str(settings.state_dir),
        "TILTYARD_RUNTIME": settings.runtime,
        "TILTYARD_BACKEND": settings.backend,
    }


async def _tasks(settings: Settings, folder: Path, source: Source) -> Path:
    """The task file; the ids are found once per (releases, commit, image)."""
    image = HOST_IMAGE if settings.backend == "local" else IMAGE
    key = hashlib.sha256(repr((HISTORY, NEW, image, source.base)).encode()).hexdigest()[:16]
    path = folder / f"tasks-{key}.jsonl"
    if not path.exists():
        deadline = asyncio.get_running_loop().time() + MEASURE_S
        async with engine(settings) as made:
            fail_to_pass, pass_to_pass = await measured_ids(made.backend, made.templates, source, image, deadline)
        temporary = path.with_suffix(".part")
        write_tasks(temporary, task_rows(source, image, fail_to_pass, pass_to_pass))
        temporary.rename(path)
    return path


def _token_file(folder: Path) -> tuple[str, Path]:
    token, digest = new_token()
    path = folder / "tokens.toml"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(entry("demo", digest, ["*"], SCOPES))
    return token, path


async def leftovers(settings: Settings) -> tuple[str, ...]:
    """Boxes, mounts and folders that the stopped server left behind."""
    async with engine(settings, starts_boxes=False) as made:
        return tuple(box.id for box in await made.backend.owned())


def table(played: Sequence[Played]) -> Table:
    made = new_table("agent", "task", "calls", "reward", "must be", "outcome", "why", "", title="rewards")
    for line in played:
        made.add_row(
            escape(line.agent.name),
            line.agent.task_id,
            str(line.calls),
            "none" if line.score is None else f"{line.score:.3f}",
            f"{line.agent.score:.3f}",
            line.outcome,
            escape(line.reason[:160]),
            "[green]ok[/green]" if line.as_it_must else "[red]WRONG[/red]",
        )
    return made


def _verdict(console: Console, played: Sequence[Played], left: Sequence[str], folder: Path) -> int:
    wrong = [line.agent.name for line in played if not line.as_it_must]
    if wrong:
        console.print(f"[red]{len(wrong)} rewards are not what they must be[/red]: {escape(json.dumps(wrong))}")
        console.print(f"the server's log: {folder / 'server.log'}", soft_wrap=True)
    if left:
        console.print(f"[red]left behind[/red]: {escape(', '.join(left))}; `tiltyard sweep` removes it")
    if not wrong and not left:
        console.print(f"{len(played)} rollouts, every reward as it must be, nothing left running")
    return 1 if wrong or left else 0
