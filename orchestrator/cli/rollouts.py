"""`tiltyard rollouts list | show`: the record, read from the store."""

import asyncio
import dataclasses
import json
from datetime import UTC, datetime

from rich.console import Console

from orchestrator.cli.terminal import printable, table, wide
from orchestrator.errors import UnknownRollout
from orchestrator.interfaces import RolloutSummary
from orchestrator.models import Binding, CallRecord, Evidence, JobId, JsonValue, Reward, RolloutKey, TraceId
from orchestrator.settings import Settings
from orchestrator.store.sql import SqlStore

SHOWN_CHARS = 600
"""Of each reply, on a terminal; `--json` has all of it."""


def list_rollouts(settings: Settings, job: str | None, limit: int, as_json: bool) -> None:
    found = asyncio.run(_list(settings, JobId(job) if job else None, limit))
    if as_json:
        print(json.dumps([_summary_json(summary) for summary in found], indent=1))
        return
    rows = table("job", "trace_id", "task", "state", "calls", "outcome", "score", "seen")
    for summary in found:
        binding, reward = summary.binding, summary.reward
        rows.add_row(
            printable(binding.rollout.job),
            printable(binding.rollout.trace_id),
            printable(binding.task),
            binding.state.value,
            str(summary.calls),
            reward.outcome.value if reward else "",
            f"{reward.score:.3f}" if reward and reward.score is not None else "",
            _when(binding.touched_at),
        )
    wide().print(rows)


def show_rollout(settings: Settings, job: str, trace_id: str, as_json: bool) -> None:
    """Raises UnknownRollout."""
    rollout = RolloutKey(job=JobId(job), trace_id=TraceId(trace_id))
    binding, calls, evidence, reward = asyncio.run(_read(settings, rollout))
    if as_json:
        whole = {"binding": binding, "calls": calls, "evidence": evidence, "reward": reward}
        print(json.dumps({name: _plain(value) for name, value in whole.items()}, indent=1))
        return
    console = wide()
    console.rule(printable(f"{binding.rollout} · task {binding.task} · {binding.state.value}"))
    if binding.reason or binding.tainted:
        console.print(printable(f"{binding.reason} {binding.tainted}".strip()))
    for call in calls:
        _print_call(console, call)
    if evidence is not None:
        _print_evidence(console, evidence)
    if reward is not None:
        _print_reward(console, reward)


def _print_call(console: Console, call: CallRecord) -> None:
    took = call.finished_at - call.started_at
    console.print(
        f"[bold]{call.sequence}. {printable(call.tool)}[/bold] {printable(call.arguments_text[:SHOWN_CHARS])}"
    )
    text = call.reply.text
    more = f"\n… {len(text) - SHOWN_CHARS} characters more" if len(text) > SHOWN_CHARS else ""
    console.print(printable(text[:SHOWN_CHARS] + more), style="red" if call.reply.is_error else "dim")
    console.print(f"   {took * 1000:.0f} ms", style="dim")


def _print_evidence(console: Console, evidence: Evidence) -> None:
    console.rule("evidence")
    for change in evidence.changes:
        console.print(printable(f"{change.kind:9} {change.path} ({change.size_bytes} bytes)"))
    console.print(f"box: {evidence.box_end.value}; submitted: {printable(str(evidence.submitted))}")


def _print_reward(console: Console, reward: Reward) -> None:
    console.rule("reward")
    score = "none" if reward.score is None else f"{reward.score:.4f}"
    console.print(f"[bold]{score}[/bold] {reward.outcome.value}: {printable(reward.reason)}")
    for name, value in reward.sub_scores.items():
        console.print(printable(f"  {name}: {value:.4f}"))
    for finding in reward.findings:
        console.print(printable(f"  ! {finding.code}: {finding.detail}"), style="yellow")


async def _list(settings: Settings, job: JobId | None, limit: int) -> list[RolloutSummary]:
    async with SqlStore.open(settings.resolved_store_url()) as store:
        return list(await store.rollouts(job, limit))


async def _read(
    settings: Settings, rollout: RolloutKey
) -> tuple[Binding, list[CallRecord], Evidence | None, Reward | None]:
    async with SqlStore.open(settings.resolved_store_url()) as store:
        binding = await store.binding(rollout)
        if binding is None:
            raise UnknownRollout(
                f"no rollout {rollout} in deployment {settings.deployment!r}; see `tiltyard rollouts list`"
            )
        return (
            binding,
            list(await store.calls(rollout)),
            await store.evidence(rollout),
            await store.reward(rollout),
        )


def _summary_json(summary: RolloutSummary) -> JsonValue:
    return _plain(summary)


def _plain(value: object) -> JsonValue:
    """Dataclasses as JSON objects, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
