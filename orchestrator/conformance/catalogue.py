"""All checks, in the order in which they are run."""

from collections.abc import Collection, Sequence
from functools import cache

from orchestrator.conformance import (
    archive_checks,
    delta_checks,
    exec_checks,
    file_checks,
    hostile_checks,
    isolation_checks,
    kill_checks,
    life_checks,
    limit_checks,
    path_checks,
    protocol_checks,
    race_checks,
    session_checks,
)
from orchestrator.conformance.model import Check
from orchestrator.errors import Misconfigured

MODULES = (
    exec_checks,
    kill_checks,
    session_checks,
    file_checks,
    path_checks,
    race_checks,
    archive_checks,
    protocol_checks,
    delta_checks,
    isolation_checks,
    limit_checks,
    hostile_checks,
    life_checks,
)


def in_groups(groups: Collection[str]) -> Sequence[Check]:
    """Checks of these groups, of all where none is named. Raises Misconfigured for an unknown group."""
    known = {module.GROUP.name for module in MODULES}
    if unknown := sorted(set(groups) - known):
        raise Misconfigured(f"unknown groups of checks {unknown}; there are: {', '.join(sorted(known))}")
    return [check for check in checks() if not groups or check.group in groups]


@cache
def checks() -> Sequence[Check]:
    """Every check; ids are unique, and each control is one of them."""
    return tuple(check for module in MODULES for check in module.GROUP.checks)


def proving(control: str) -> Sequence[Check]:
    """Checks that are evidence for one security control, `C1` to `C35`."""
    return tuple(check for check in checks() if control in check.controls)
