"""What a command may ask of the kernel: its privileges, system calls, terminals, and the places that it may write to."""

from orchestrator.conformance import expect
from orchestrator.conformance.model import Group
from orchestrator.conformance.rig import Rig

GROUP = Group("isolation")
"""Its first half; `isolation_checks` adds what a box keeps from machine, neighbours and agent."""

WHO = ["self", "thread", "forked", "started"]


async def _statuses(rig: Rig) -> list[dict[str, str]]:
    """Fields of /proc/PID/status, of a command, its threads, its child and a program that it started."""
    facts = await (await rig.box()).facts("status")
    return [{"who": who, **dict(field.split("=", 1) for field in fields)} for who, *fields in facts]


@GROUP.positive()
async def posture_can_be_read(rig: Rig) -> None:
    """The probe for privileges reads the status of a command, its threads, its child and what it starts."""
    found = await _statuses(rig)
    expect.equal(list(dict.fromkeys(status["who"] for status in found)), WHO, "whose status was read")
    expect.that(all(len(status) == 10 and all(status.values()) for status in found), f"every field, found {found[0]}")


@GROUP.negative(control=posture_can_be_read, proves=("C1",))
async def commands_have_no_capabilities(rig: Rig) -> None:
    """No capability is effective, permitted, inheritable or ambient, in a command, its threads or its children."""
    for status in await _statuses(rig):
        expect.that("0" not in (status["Uid"], status["Gid"]), "another user than root")
        held = {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
        expect.equal(held, {0}, f"capabilities of {status['who']}")


@GROUP.negative(control=posture_can_be_read, proves=("C2", "C3"))
async def no_new_privileges_and_a_filter(rig: Rig) -> None:
    """`no_new_privs` is set and a seccomp filter is on, in a command, its threads and its children."""
    for status in await _statuses(rig):
        found = status["NoNewPrivs"], status["Seccomp"]
        expect.equal(found, ("1", "2"), f"NoNewPrivs and Seccomp of {status['who']}")


@GROUP.positive()
async def ordinary_system_calls_work(rig: Rig) -> None:
    """The probe for system calls can tell one that is allowed."""
    found = await system_calls(rig, "harmless")
    expect.that(len(found) >= 5, "several harmless calls to be tried")
    expect.equal({*found.values()}, {"ok"}, "what came of them")


async def system_calls(rig: Rig, *groups: str) -> dict[str, str]:
    """Name of each system call of these groups of the probe's table -> `ok`, the error's name, or `killed`."""
    return {name: said for group, name, said in await (await rig.box()).facts("calls") if group in groups}


def all_refused(found: dict[str, str], *also: str) -> None:
    """Each of them ended as a filter ends calls, or as one of `also`. Raises Broken."""
    good = {"EPERM", "ENOSYS", *also}
    expect.that(found, "calls to have been tried")
    expect.equal({name: said for name, said in found.items() if said not in good}, {}, "calls that were not refused")


@GROUP.negative(control=ordinary_system_calls_work, proves=("C3", "C4"))
async def dangerous_system_calls_are_refused(rig: Rig) -> None:
    """What kernels were broken by is refused: io_uring, bpf, keyrings, modules, mounts, handles, AF_ALG, AF_VSOCK."""
    all_refused(await system_calls(rig, "kernel", "mounts", "handles"))
    all_refused(await system_calls(rig, "families"), "EAFNOSUPPORT")


@GROUP.negative(control=ordinary_system_calls_work, proves=("C3", "C10"))
async def namespaces_cannot_be_made(rig: Rig) -> None:
    """No namespace can be made or entered, by unshare, setns, clone or clone3."""
    all_refused(await system_calls(rig, "namespaces"))
    expect.equal(await system_calls(rig, "clone3"), {"clone3": "ENOSYS"}, "clone3, whose flags no filter can see")


@GROUP.negative(control=ordinary_system_calls_work, proves=("C3",))
async def system_calls_of_other_tables_are_refused(rig: Rig) -> None:
    """Calls by the numbers of 32-bit x86 and x32, which would pass by a filter of 64-bit numbers, are refused or kill."""
    if found := await system_calls(rig, "foreign"):  # other architectures have no second table
        all_refused(found, "killed")


@GROUP.negative(control=ordinary_system_calls_work, proves=("C34",))
async def the_clock_cannot_be_set(rig: Rig) -> None:
    """A command cannot move the machine's time."""
    all_refused(await system_calls(rig, "clock"))


@GROUP.negative(control=ordinary_system_calls_work, proves=("C30",))
async def no_terminal_takes_typed_letters(rig: Rig) -> None:
    """There is no terminal into whose input a command could put letters (TIOCSTI)."""
    found = await (await rig.box()).facts("terminal")
    expect.that(len(found) >= 4, "several places to be tried")
    expect.equal([place for place, said in found if said == "ok"], [], "places that took a letter")


@GROUP.positive()
async def own_folders_are_writable(rig: Rig) -> None:
    """The probe for writable folders finds workspace, home and /tmp."""
    found = await _writable(rig)
    for folder in (rig.spec.workdir, "/tmp"):  # noqa: S108  (in the box)
        expect.that(folder in found, f"{folder} among the writable folders")


async def _writable(rig: Rig) -> list[str]:
    return [path for (path,) in await (await rig.box()).facts("writable")]


@GROUP.negative(control=own_folders_are_writable, proves=("C6",))
async def the_rest_is_read_only(rig: Rig) -> None:
    """Nothing else of the file system can be written but shared memory, which counts as the box's memory."""
    ours = (rig.spec.workdir, "/tmp", "/home/agent", "/dev/shm", "/dev/mqueue")  # noqa: S108  (in the box)
    others = [path for path in await _writable(rig) if not any(_below(path, own) for own in ours)]
    expect.equal(others, [], "other writable places")


@GROUP.negative(control=own_folders_are_writable, proves=("C6",))
async def writable_places_hold_no_privilege(rig: Rig) -> None:
    """Every mount that a command may write to is mounted nosuid and nodev."""
    mounts = {target: options.split(",") for target, _, options in await (await rig.box()).facts("mounts")}
    for path in await _writable(rig):
        target = max((each for each in mounts if _below(path, each)), key=len)
        expect.that(
            {"nosuid", "nodev"} <= {*mounts[target]}, f"{target} to be nosuid and nodev, found {mounts[target]}"
        )


def _below(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(folder + "/")
