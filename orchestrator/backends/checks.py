"""What `doctor` prints: one fact about this machine, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`fail`: boxes cannot run. `warn`: they run, with a gap that `detail` names. `fix` is empty when there is nothing to do."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    return Check(name=name, verdict=Verdict.OK, detail=detail)


def warn(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, verdict=Verdict.WARN, detail=detail, fix=fix)


def fail(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, verdict=Verdict.FAIL, detail=detail, fix=fix)
