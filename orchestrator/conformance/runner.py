"""Runs checks over a backend. Negative ones count only if their positive control passed over the same backend in the same run."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from orchestrator.conformance.catalogue import checks, in_groups
from orchestrator.conformance.model import Broken, Check, Outcome, Report, Result, check_gaps
from orchestrator.conformance.rig import Rig
from orchestrator.errors import TiltyardError
from orchestrator.interfaces import SandboxBackend, SandboxSpec


class Suite:
    """One run over one backend. Use as an async context manager, or call `aclose`."""

    def __init__(self, backend: SandboxBackend, spec: SandboxSpec, gaps: Mapping[str, str]) -> None:
        """Raises Misconfigured for gaps that name no check."""
        check_gaps(checks(), gaps)
        self.rig = Rig(backend, spec)
        self._gaps = gaps
        self._by_id = {check.id: check for check in checks()}
        self._failures: dict[str, tuple[str | None, float]] = {}

    async def run(self, check: Check) -> Result:
        """The check's result; checks that were run as a control are not run again."""
        failure, seconds = await self._failure(check)
        if failure is None and check.control is not None:
            control, _ = await self._failure(self._by_id[check.control])
            if control is not None:
                failure = f"its positive control {check.control} failed, so this proves nothing: {control}"
        return _result(check, failure, self._gaps.get(check.id), seconds)

    async def _failure(self, check: Check) -> tuple[str | None, float]:
        if check.id not in self._failures:
            began = time.monotonic()
            failure = await _attempt(check, self.rig)
            self._failures[check.id] = failure, time.monotonic() - began
            if failure is not None:
                await self._renew()
        return self._failures[check.id]

    async def _renew(self) -> None:
        """A check that failed may have left the shared box in any state."""
        try:
            await self.rig.discard()
        except TiltyardError:
            return  # the box is listed as left behind at the end

    async def aclose(self) -> Sequence[str]:
        """End what is left; ids of boxes that checks had left behind."""
        return await self.rig.aclose()


async def _attempt(check: Check, rig: Rig) -> str | None:
    """Why the check failed, None if it passed."""
    try:
        async with asyncio.timeout(check.limit_s):
            await check.body(rig)
    except Broken as broken:
        return str(broken)
    except TimeoutError:
        return f"not done within {check.limit_s:g} s"
    except Exception as error:  # noqa: BLE001  (whatever a foreign backend raises is this check's result)
        return f"{type(error).__name__}: {error}"
    return None


def _result(check: Check, failure: str | None, gap: str | None, seconds: float) -> Result:
    """A gap that no longer is one fails the run, so that it is taken off the list."""
    if gap is None:
        outcome = Outcome.PASSED if failure is None else Outcome.FAILED
        text = failure or ""
    else:
        outcome = Outcome.XPASSED if failure is None else Outcome.XFAILED
        text = gap if failure else f"passes now: take it off the gaps ({gap})"
    return Result(check=check, outcome=outcome, text=text, seconds=seconds)


def _ignore(result: Result) -> None:
    del result


async def run(
    backend: SandboxBackend,
    *,
    spec: SandboxSpec,
    gaps: Mapping[str, str],
    on_result: Callable[[Result], None] = _ignore,
    groups: Collection[str] = (),
    subject: str = "",
) -> Report:
    """Every check (or those of `groups`) over `backend`, boxes made from `spec`. `gaps`: check id -> why it is known to fail.
    `subject` names what was proved in the report: the backend's name unless given.

    Raises Misconfigured for a gap or group that is not known.
    """
    chosen = in_groups(groups)
    suite = Suite(backend, spec, gaps)
    results: list[Result] = []
    try:
        for check in chosen:
            result = await suite.run(check)
            results.append(result)
            on_result(result)
    finally:
        left_behind = await suite.aclose()
    return Report(subject=subject or backend.name, results=results, left_behind=left_behind)
