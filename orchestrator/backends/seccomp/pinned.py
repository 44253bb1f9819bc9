"""The filter as it is handed to an engine: read, and checked before anything runs under it."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.backends.seccomp import rules
from orchestrator.errors import Misconfigured

PINNED = "tiltyard.json"
Action = Literal["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Argument(_Part):
    """Holds when argument `index` compares so; with MASKED_EQ `value` is the mask and `valueTwo` what must be left of it."""

    index: int = Field(ge=0, le=5)
    value: int = Field(ge=0, lt=2**64)
    valueTwo: int = Field(default=0, ge=0, lt=2**64)
    op: Literal["SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_LE", "SCMP_CMP_MASKED_EQ"]


class Entry(_Part):
    """All of `args` must hold; entries for the same call are alternatives."""

    names: tuple[str, ...] = Field(min_length=1)
    action: Action
    args: tuple[Argument, ...] = ()
    errnoRet: int | None = None
    comment: str = ""


class Architecture(_Part):
    """`subArchitectures` must be empty: no 32-bit program runs in a box."""

    architecture: str
    subArchitectures: tuple[str, ...] = Field(max_length=0)


class Profile(_Part):
    """A filter in the engines' own form. What no entry names is refused."""

    defaultAction: Literal["SCMP_ACT_ERRNO"]
    defaultErrnoRet: int
    archMap: tuple[Architecture, ...] = Field(min_length=1)
    syscalls: tuple[Entry, ...] = Field(min_length=1)


_ROUTES = (
    Argument(index=0, value=rules.AF_NETLINK, op="SCMP_CMP_EQ"),
    Argument(index=2, value=rules.NETLINK_ROUTE, op="SCMP_CMP_EQ"),
)


def pinned() -> Traversable:
    """Where the filter that comes with this version lies."""
    return resources.files("orchestrator.backends.seccomp") / PINNED


def profile(path: Path | None = None) -> str:
    """The filter as compact JSON, which is how the engine wants it within `SecurityOpt`. `path`: another than the pinned one.

    Raises Misconfigured: it is missing or unreadable, is no filter, or lets through what no box may do.
    """
    source: Traversable = path or pinned()
    try:
        found = Profile.model_validate_json(source.read_bytes())
    except OSError as error:
        raise Misconfigured(f"the system call filter cannot be read ({error}): install tiltyard again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Misconfigured(f"the system call filter {source} is broken: {where}: {first['msg']}") from error
    if allowed := too_much(found):
        raise Misconfigured(f"the system call filter {source} lets through what no box may do: {', '.join(allowed)}")
    return found.model_dump_json(
        exclude_none=True, exclude_defaults=True, exclude={"syscalls": {"__all__": {"comment"}}}
    )


def with_routes(text: str) -> str:
    """The filter of `profile` for programs of ours that must see their network's interfaces: no box's."""
    found = Profile.model_validate_json(text)
    entries = [entry for entry in found.syscalls if entry.args != _ROUTES]
    entries.append(Entry(names=("socket",), action="SCMP_ACT_ALLOW", args=_ROUTES))
    changed = found.model_copy(update={"syscalls": tuple(entries)})
    return changed.model_dump_json(exclude_none=True, exclude_defaults=True)


def too_much(found: Profile) -> list[str]:
    """Calls that `found` lets through and must not."""
    allowing = [entry for entry in found.syscalls if entry.action == "SCMP_ACT_ALLOW"]
    always = {name for entry in allowing if not entry.args for name in entry.names}
    named = {name for entry in allowing for name in entry.names}
    return sorted((named & rules.NEVER) | (always & rules.BY_ARGUMENT_ONLY))
