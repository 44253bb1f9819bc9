"""The conformance suite: what every backend must promise, as checks that anybody can run over any backend.

    report = await run(backend, spec=spec, gaps={}, on_result=lambda result: print(line(result)))
    print(render(report)); sys.exit(report.exit_status)

It needs no test framework. A negative check counts only where its positive control passed over the same backend.
"""

from orchestrator.conformance.catalogue import checks, proving
from orchestrator.conformance.gaps import DEFAULT_IMAGE, GAPS, subject
from orchestrator.conformance.model import Check, Kind, Outcome, Report, Result
from orchestrator.conformance.named import run_named
from orchestrator.conformance.report import line, render
from orchestrator.conformance.runner import Suite, run

__all__ = [
    "DEFAULT_IMAGE",
    "GAPS",
    "Check",
    "Kind",
    "Outcome",
    "Report",
    "Result",
    "Suite",
    "checks",
    "line",
    "proving",
    "render",
    "run",
    "run_named",
    "subject",
]
