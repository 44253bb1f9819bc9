"""What a person sees of a run, as plain text."""

from collections.abc import Iterable

from orchestrator.conformance.model import Outcome, Report, Result

SIGNS = {Outcome.PASSED: "ok", Outcome.FAILED: "FAILED", Outcome.XFAILED: "gap", Outcome.XPASSED: "GAP CLOSED"}


def line(result: Result) -> str:
    """One line per check, and what was found where it is not plainly ok."""
    text = f"{SIGNS[result.outcome]:<10}  {result.check.id:<60}  {result.seconds:6.2f} s"
    return f"{text}\n{'':<12}{result.text}" if result.text else text


def render(report: Report) -> str:
    """The whole table: groups, failures, gaps, what was left behind, and the sum."""
    return "\n".join([*_groups(report), *_left_behind(report), _sum(report)])


def _groups(report: Report) -> Iterable[str]:
    for group in dict.fromkeys(result.check.group for result in report.results):
        yield group
        yield from (f"  {line(result)}" for result in report.results if result.check.group == group)


def _left_behind(report: Report) -> Iterable[str]:
    if report.left_behind:
        yield f"LEFT BEHIND by checks, removed now: {', '.join(report.left_behind)}"


def _sum(report: Report) -> str:
    counts = [f"{report.count(outcome)} {outcome.value}" for outcome in Outcome if report.count(outcome)]
    seconds = sum(result.seconds for result in report.results)
    verdict = "conforms" if report.ok else "DOES NOT CONFORM"
    return f"{report.subject}: {len(report.results)} checks, {', '.join(counts)} in {seconds:.0f} s: {verdict}"
