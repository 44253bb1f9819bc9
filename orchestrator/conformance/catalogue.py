"""All checks, in the order in which they are run."""

from collections.abc import Sequence
from functools import cache

from orchestrator.conformance import (
    delta_checks,
    exec_checks,
    file_checks,
    isolation_checks,
    kill_checks,
    life_checks,
    limit_checks,
    path_checks,
    protocol_checks,
)
from orchestrator.conformance.model import Check

MODULES = (
    exec_checks,
    kill_checks,
    file_checks,
    path_checks,
    protocol_checks,
    delta_checks,
    isolation_checks,
    limit_checks,
    life_checks,
)


@cache
def checks() -> Sequence[Check]:
    """Every check; ids are unique, and each control is one of them."""
    return tuple(check for module in MODULES for check in module.GROUP.checks)
