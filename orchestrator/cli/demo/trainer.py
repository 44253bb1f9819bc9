"""The part of a trainer that a server sees: tool calls and grades in the RFT wire form, with its retries."""

import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from orchestrator.errors import TiltyardError
from orchestrator.models import JsonValue

RETRIES = 3
"""A trainer repeats a 5xx three times, then drops the rollout (Foundry's published contract)."""


class RolloutDropped(TiltyardError):
    """The server answered 5xx to the end: a trainer would discard the rollout."""

    reason = "rollout_dropped"


@dataclass(slots=True)
class Rollout:
    """One rollout as its trainer plays it. Calls may run in parallel."""

    session: aiohttp.ClientSession
    url: str
    task_id: str
    trace_id: str = field(default_factory=lambda: f"trace_{uuid.uuid4()}")
    calls: int = 0

    async def tool(self, name: str, **arguments: JsonValue) -> str:
        """The tool's output text. Raises RolloutDropped."""
        self.calls += 1
        call_id = f"call_{self.calls}"
        body: dict[str, JsonValue] = {
            "type": "function_call",
            "id": f"fc_{self.calls}",
            "call_id": call_id,
            "name": name,
            "arguments": json.dumps(arguments),
            "trace_id": self.trace_id,
            "item": {"task_id": self.task_id},
        }
        reply = await self._post("/tools", body)
        return str(reply["output"])

    async def grade(self, final_answer: str) -> float:
        """The score. Raises RolloutDropped."""
        body: dict[str, JsonValue] = {
            "sample": {"output_text": final_answer, "output_tools": [], "choices": []},
            "item": {"task_id": self.task_id},
            "trace_id": self.trace_id,
        }
        score = (await self._post("/grade", body))["score"]
        if not isinstance(score, int | float):
            raise RolloutDropped(f"a grade answered {score!r}")
        return float(score)

    async def _post(self, path: str, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        status, text = 0, ""
        for attempt in range(1 + RETRIES):
            async with self.session.post(self.url + path, json=body) as response:
                status, text = response.status, await response.text()
            if status == 200:
                parsed: dict[str, JsonValue] = json.loads(text)
                return parsed
            if status < 500:
                break
            await asyncio.sleep(0.2 * 2**attempt)
        raise RolloutDropped(f"{path} answered {status}: {text[:300]}")
