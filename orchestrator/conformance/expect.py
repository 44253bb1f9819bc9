"""Expectations of checks. Each raises Broken with what was wanted and what was found."""

from collections.abc import Awaitable
from typing import TypeVar

from orchestrator.conformance.model import Broken
from orchestrator.operations import ExecResult, Failure, FailureCode, OperationResult

SHOWN_CHARS = 300

AnyResult = TypeVar("AnyResult")


def shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}.. ({len(text)} characters)"


def that(condition: object, what: str) -> None:
    if not condition:
        raise Broken(f"expected {what}")


def equal(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Broken(f"{what}: expected {shorten(wanted)}, found {shorten(found)}")


def within(found: object, wanted: "frozenset[str] | set[str]", what: str) -> None:
    if found not in wanted:
        raise Broken(f"{what}: expected one of {sorted(wanted)}, found {shorten(found)}")


def kind(result: object, wanted: type[AnyResult]) -> AnyResult:
    """`result`, if it is of that type."""
    if not isinstance(result, wanted):
        raise Broken(f"expected a {wanted.__name__}, found {shorten(result)}")
    return result


def refused(result: OperationResult, *codes: FailureCode) -> Failure:
    """The refusal, if it is one with one of `codes`."""
    failure = kind(result, Failure)
    if failure.code not in codes:
        raise Broken(f"expected a refusal as {[code.value for code in codes]}, found {shorten(failure)}")
    return failure


def succeeded(result: ExecResult, what: str) -> ExecResult:
    """`result`, if the command exited with 0."""
    if result.exit_code != 0:
        raise Broken(f"{what}: expected exit status 0, found {_ending(result)}, output {shorten(result.stdout.head)}")
    return result


def _ending(result: ExecResult) -> str:
    if result.timed_out:
        return "a time-out"
    return f"signal {result.signal}" if result.exit_code is None else f"status {result.exit_code}"


async def raised(attempt: Awaitable[object], *types: type[BaseException]) -> BaseException:
    """What `attempt` raised, if it is one of `types`."""
    try:
        found = await attempt
    except types as error:
        return error
    raise Broken(f"expected {' or '.join(each.__name__ for each in types)}, found {shorten(found)}")
