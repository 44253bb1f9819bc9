"""From upstream's facts and our rules to the filter: pure functions."""

import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from pydantic import BaseModel, ConfigDict, TypeAdapter

from orchestrator.backends.seccomp import rules
from orchestrator.backends.seccomp.pinned import Action, Architecture, Argument, Entry, Profile
from orchestrator.backends.seccomp.rules import Rule
from orchestrator.errors import Misconfigured

UPSTREAM = "upstream.toml"
INT_BITS = 32
WRAP = 144


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ByArgument(_Fact):
    """Let through for these values: below `below`, one of `equal`, or with no bit of `mask`."""

    name: str
    argument: int
    below: int = 0
    equal: tuple[int, ...] = ()
    mask: int = 0
    without: str = ""
    not_on: tuple[str, ...] = ()
    only_on: tuple[str, ...] = ()

    def lets(self, value: int) -> bool:
        return value < self.below or value in self.equal


class ByErrno(_Fact):
    name: str
    errno: int
    without: str = ""


class ByArchitecture(_Fact):
    on: tuple[str, ...]
    names: str


class Upstream(_Fact):
    """The engines' default filter. Lists of names are words of one text."""

    repository: str
    path: str
    commit: str
    read: object
    errno: int
    always: str
    by_argument: tuple[ByArgument, ...]
    by_errno: tuple[ByErrno, ...]
    by_kernel: Mapping[str, str]
    by_architecture: tuple[ByArchitecture, ...]
    by_capability: Mapping[str, str]
    architectures: Mapping[str, tuple[str, ...]]

    def narrowed(self, name: str) -> Sequence[ByArgument]:
        return [each for each in self.by_argument if each.name == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one call of upstream's, and by which rule."""

    call: str
    kept: bool
    rule: Rule


def upstream() -> Upstream:
    text = (resources.files("orchestrator.backends.seccomp") / UPSTREAM).read_text(encoding="utf-8")
    return TypeAdapter(Upstream).validate_python(tomllib.loads(text))


def decide(facts: Upstream) -> Mapping[str, Decision]:
    """One decision for every call that upstream names anywhere; where it stands under several conditions, one that keeps it wins."""
    found: dict[str, Decision] = {}
    for decision in _every(facts):
        if decision.call not in found or decision.kept:
            found[decision.call] = decision
    return dict(sorted(found.items()))


def _every(facts: Upstream) -> Iterator[Decision]:
    by_call = {call: rule for rule in (*rules.DROPPED, rules.UNHEARD_OF) for call in rule.calls}
    by_call |= {call: rule for rule in rules.DROPPED for call in rule.calls}
    narrowed = {call: rule for rule in rules.NARROWED for call in rule.calls}

    def judged(call: str, otherwise: Rule, kept: bool) -> Decision:
        if call in by_call:
            return Decision(call=call, kept=False, rule=by_call[call])
        return Decision(call=call, kept=kept, rule=narrowed.get(call, otherwise) if kept else otherwise)

    for call in facts.always.split():
        yield judged(call, rules.KEPT, kept=True)
    for call in (*(each.name for each in facts.by_argument), *(each.name for each in facts.by_errno)):
        yield judged(call, rules.KEPT, kept=True)
    for since, calls in facts.by_kernel.items():
        new_enough = tuple(map(int, since.split("."))) <= rules.LEAST_KERNEL
        yield from (judged(call, rules.SINCE_KERNEL, kept=new_enough) for call in calls.split())
    for group in facts.by_architecture:
        ours = bool(set(group.on) & set(rules.ARCHITECTURES))
        rule = rules.KEPT if ours else rules.ARCHITECTURE
        yield from (judged(call, rule, kept=ours) for call in group.names.split())
    for calls in facts.by_capability.values():
        yield from (judged(call, rules.CAPABILITY, kept=False) for call in calls.split())


def generate(facts: Upstream) -> Profile:
    """The filter. Raises Misconfigured when upstream no longer lets through what a rule wants kept."""
    decisions = decide(facts)
    entries = []
    for rule in (rules.KEPT, rules.SINCE_KERNEL):
        if names := [each.call for each in decisions.values() if each.kept and each.rule is rule]:
            entries.append(_entry(sorted(names), rule))
    entries += [*_sockets(facts), *_personalities(facts), *_terminals(), *_namespaces(facts)]
    refused = tuple(sorted(rules.UNHEARD_OF.calls))
    entries.append(_entry(refused, rules.UNHEARD_OF, action="SCMP_ACT_ERRNO", errnoRet=rules.ENOSYS))
    return Profile(
        defaultAction="SCMP_ACT_ERRNO",
        defaultErrnoRet=facts.errno,
        archMap=tuple(
            Architecture(architecture=name, subArchitectures=()) for name in rules.NATIVE if name in facts.architectures
        ),
        syscalls=tuple(_said_once(entries)),
    )


def _said_once(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Each reason stands at the first of its entries."""
    said: set[str] = set()
    for entry in entries:
        yield entry.model_copy(update={"comment": ""}) if entry.comment in said else entry
        said.add(entry.comment)


def _entry(
    names: Sequence[str], rule: Rule, *args: Argument, action: Action = "SCMP_ACT_ALLOW", errnoRet: int | None = None
) -> Entry:
    return Entry(names=tuple(names), action=action, args=args, errnoRet=errnoRet, comment=f"{rule.name}: {rule.reason}")


def _equal(index: int, value: int) -> Argument:
    return Argument(index=index, value=value, op="SCMP_CMP_EQ")


def _sockets(facts: Upstream) -> Iterator[Entry]:
    for family in (rules.AF_UNIX, *rules.FAMILIES, rules.AF_NETLINK):
        if not any(each.lets(family) for each in facts.narrowed("socket")):
            raise Misconfigured(
                f"upstream lets no socket of family {family} through any more: change the rule {rules.SOCKETS.name}"
            )
    rule = rules.SOCKETS
    for call in sorted(rule.calls):
        yield _entry([call], rule, _equal(0, rules.AF_UNIX))
    for family, highest in rules.FAMILIES.items():
        yield _entry(["socket"], rule, _equal(0, family), Argument(index=2, value=highest, op="SCMP_CMP_LE"))
    netlink, route = _equal(0, rules.AF_NETLINK), _equal(2, rules.NETLINK_ROUTE)
    # Programs that list interfaces take this word for "there are none to be told of".
    yield _entry(["socket"], rule, netlink, route, action="SCMP_ACT_ERRNO", errnoRet=rules.ENOSYS)
    other = Argument(index=2, value=rules.NETLINK_ROUTE, op="SCMP_CMP_NE")
    # useradd and its like go on without audit when they hear this word.
    yield _entry(["socket"], rule, netlink, other, action="SCMP_ACT_ERRNO", errnoRet=rules.EPROTONOSUPPORT)


def _personalities(facts: Upstream) -> Iterator[Entry]:
    allowed = {value for each in facts.narrowed("personality") for value in each.equal}
    for value in rules.PERSONALITIES:
        if value in allowed:
            yield _entry(["personality"], rules.PERSONALITY, _equal(0, value))


def _terminals() -> Iterator[Entry]:
    """Every request that differs from TIOCSTI in some bit. The kernel looks at 32 bits of the 64, and so must this: a comparison of all 64
    would let TIOCSTI through with a higher bit set (CVE-2019-10063 was that)."""
    for bit in range(INT_BITS):
        mask = 1 << bit
        differs = Argument(index=1, value=mask, valueTwo=~rules.TIOCSTI & mask, op="SCMP_CMP_MASKED_EQ")
        yield _entry(["ioctl"], rules.TERMINALS, differs)


def _namespaces(facts: Upstream) -> Iterator[Entry]:
    for each in facts.narrowed("clone"):
        if not each.only_on and not set(each.not_on) & set(rules.ARCHITECTURES):
            yield _entry(
                ["clone"], rules.NAMESPACES, Argument(index=each.argument, value=each.mask, op="SCMP_CMP_MASKED_EQ")
            )


def render(profile: Profile) -> str:
    """The pinned file's text: the same bytes for the same profile; one entry to a block, names wrapped."""
    head = {"defaultAction": profile.defaultAction, "defaultErrnoRet": profile.defaultErrnoRet}
    lines = ["{", *(f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items())]
    lines.append('  "archMap": [')
    lines += _joined([json.dumps(each.model_dump()) for each in profile.archMap])
    lines += ["  ],", '  "syscalls": [']
    lines += _joined([_block(entry) for entry in profile.syscalls])
    return "\n".join([*lines, "  ]", "}", ""])


def _joined(blocks: Sequence[str]) -> list[str]:
    return textwrap.indent(",\n".join(blocks), "    ").splitlines()


def _block(entry: Entry) -> str:
    rest = json.dumps(entry.model_dump(exclude={"names", "comment"}, exclude_none=True, exclude_defaults=True))[1:]
    comment = f'"comment": {json.dumps(entry.comment)},\n ' if entry.comment else ""
    names = ", ".join(json.dumps(name) for name in entry.names)
    if len(names) > WRAP:
        names = textwrap.indent("\n" + textwrap.fill(names, WRAP), "   ") + "\n "
    return f'{{{comment}"names": [{names}], {rest}'
