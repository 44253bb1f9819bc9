"""What a box keeps from the machine, from its neighbours and from its own agent."""

import asyncio
import os
import secrets
import socket
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

from orchestrator.conformance import expect
from orchestrator.conformance.privilege_checks import GROUP, all_refused, system_calls
from orchestrator.conformance.rig import PROBE, Box, Rig, until

METADATA = ("169.254.169.254 80", "fd00:ec2::254 80", "100.100.100.200 80", "::ffff:169.254.169.254 80")
ABROAD = ("8.8.8.8 53", "1.1.1.1 443", "2001:4860:4860::8888 53", "10.0.0.1 80", "172.17.0.1 2375", "192.168.0.1 80")
RESOLVERS = ("8.8.8.8", "127.0.0.11", "127.0.0.53", "10.96.0.10")
"""A public one, and where engines, systemd and clusters put theirs."""
NAMES = ("example.com 80", "metadata.google.internal 80", "host.docker.internal 80")
MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware", "/proc/kallsyms")
SWITCHES = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/proc/sys/vm/drop_caches",
)
AGENT_FILES = ("/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/fd", "/proc/1/root", "/proc/1/cwd/etc")
TRACING = ("ptrace", "process_vm_readv")
"""Both are tried on PID 1."""
AGENT_STATE = ("/run/tiltyard/state", "/run/tiltyard/state/journal", "/run/tiltyard/trusted/secret")
DEVICES = frozenset(
    {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"}
    | {"fd", "stdin", "stdout", "stderr", "core", "console"}
)


@GROUP.positive()
async def loopback_works(rig: Rig) -> None:
    """Programs of a box can speak to each other over 127.0.0.1."""
    found = await (await rig.box()).facts("loopback")
    expect.equal(found, [["tcp", "hello"], ["udp", "hello"]], "what came over TCP and UDP")


@GROUP.negative(control=loopback_works, proves=("C20",))
async def no_network_interface(rig: Rig) -> None:
    """There is no interface but the loopback."""
    names = {name for name, _ in await (await rig.box()).facts("interfaces")}
    expect.equal(sorted(name for name in names if name not in ("lo", "sit0", "tunl0", "ip6tnl0")), [], "interfaces")


@GROUP.negative(control=loopback_works, proves=("C20",))
async def metadata_service_is_out_of_reach(rig: Rig) -> None:
    """The clouds' metadata addresses cannot be reached, over IPv4, IPv6 or mapped."""
    await _unreachable(await rig.box(), METADATA)
    await _nothing_sent(await rig.box(), METADATA)


@GROUP.negative(control=loopback_works, proves=("C20",))
async def the_world_is_out_of_reach(rig: Rig) -> None:
    """Neither the internet nor private ranges can be reached, by TCP, UDP or ICMP, and no name resolves."""
    box = await rig.box()
    await _unreachable(box, (*ABROAD, *NAMES))
    await _nothing_sent(box, ABROAD)
    servers = [server for server, said in await box.facts("dns", *RESOLVERS) if said not in ("unreachable", "silent")]
    expect.equal(servers, [], "name servers that answer")


@GROUP.negative(control=loopback_works, proves=("C20",))
async def the_machine_is_out_of_reach(rig: Rig) -> None:
    """A server that listens on every address of this machine cannot be reached from a box."""
    with closing(socket.create_server(("", 0))) as server:
        port = server.getsockname()[1]
        await _unreachable(
            await rig.box(), [f"{address} {port}" for address in ("127.0.0.1", *_own_addresses())], "refused"
        )


def _own_addresses() -> list[str]:
    found = socket.getaddrinfo(socket.gethostname(), None, family=socket.AF_INET)
    return sorted({str(info[4][0]) for info in found})


async def _unreachable(box: Box, targets: "list[str] | tuple[str, ...]", *also: str) -> None:
    found = await box.facts("tcp", *targets)
    expect.equal([target for target, _ in found], list(targets), "targets of the probe")
    good = {"unreachable", "unresolved", *also}
    expect.equal([fact for fact in found if fact[1] not in good], [], "addresses that answer")


async def _nothing_sent(box: Box, targets: tuple[str, ...]) -> None:
    """No datagram and no echo request leaves for any of them."""
    addresses = [target.rpartition(" ")[0] for target in targets]
    found = [*await box.facts("udp", *targets), *await box.facts("icmp", *addresses)]
    expect.equal(len(found), 2 * len(targets), "answers of the probe")
    expect.equal([target for target, said in found if said == "sent"], [], "addresses that datagrams leave for")


@GROUP.positive()
async def a_boxs_own_files_are_seen(rig: Rig) -> None:
    """The probe for files sees one that is there."""
    box = await rig.box()
    expect.equal(await box.text("echo here > /tmp/own; cat /tmp/own; rm /tmp/own"), "here\n", "the file")


@GROUP.negative(control=a_boxs_own_files_are_seen, proves=("C9",))
async def files_of_the_machine_are_not_seen(rig: Rig) -> None:
    """A file of this machine exists in no box, by its own name or through /proc."""
    canary = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "canary")
        await asyncio.to_thread(path.write_text, canary)
        path.parent.chmod(0o755)  # or nobody but us could read it, whatever a box shares
        box = await rig.box()
        for seen in (str(path), f"/proc/1/root{path}", f"/proc/self/root{path}", f"/host{path}", f"/mnt{path}"):
            result = await box.sh(f"cat '{seen}'")
            expect.that(result.exit_code != 0 and canary.encode() not in result.stdout.head, f"no {seen}")


@GROUP.positive()
async def own_processes_are_seen(rig: Rig) -> None:
    """The probe for processes sees the box's own."""
    found = await (await rig.box()).facts("processes")
    expect.that(any("tiltyard-probe" in fact[-1] for fact in found), "the probe among the processes")


@GROUP.negative(control=own_processes_are_seen, proves=("C10",))
async def processes_of_the_machine_are_not_seen(rig: Rig) -> None:
    """No process of this machine shows in a box's /proc, this suite's own least of all."""
    marker = secrets.token_hex(16)
    program = "import sys; sys.stdin.read()"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, marker, stdin=pipe)
    try:
        seen = await (await rig.box()).facts("processes")
        expect.that(not any(marker in line for *_, line in seen), "no process of this machine")
        expect.that(len(seen) < 40, "only a box's few processes")
    finally:
        await process.communicate(b"")


@GROUP.positive()
async def own_socket_can_be_connected_to(rig: Rig) -> None:
    """The probe for sockets finds one that a command made."""
    box = await rig.box()
    await box.bring_probe()
    pid = (await box.text(f"{PROBE} listen /tmp/own.sock >own 2>&1 & echo $!")).strip()
    await until(partial(_sees, box, [["/tmp/own.sock"]]), "the probe to find a socket that answers")  # noqa: S108
    await box.text(f"kill -9 {pid}; rm -f /tmp/own.sock")


async def _sees(box: Box, sockets: list[list[str]]) -> bool:
    return await box.facts("sockets") == sockets


@GROUP.negative(control=own_socket_can_be_connected_to, proves=("C9",))
async def no_socket_leads_out(rig: Rig) -> None:
    """No unix socket in the box answers a command: not the agent's, no engine's."""
    box = await rig.box()
    expect.equal(await box.facts("sockets"), [], "sockets that answer")
    expect.equal((await box.sh("test -e /var/run/docker.sock")).exit_code, 1, "the engine's socket")


@GROUP.positive()
async def a_command_knows_its_user(rig: Rig) -> None:
    """`id` works, and says the same each time."""
    box = await rig.box()
    first = await box.text("id -u")
    expect.that(first.strip().isdigit(), "a number")
    expect.equal(await box.text("id -u"), first, "the user, asked again")


@GROUP.negative(control=a_command_knows_its_user, proves=("C5",))
async def commands_are_not_root(rig: Rig) -> None:
    """Commands run as an unprivileged user and group."""
    ids = (await (await rig.box()).text("id -u; id -g")).split()
    expect.that("0" not in ids, f"neither user nor group 0, found {ids}")


@GROUP.positive()
async def harmless_kernel_files_are_readable(rig: Rig) -> None:
    """The probe for readable files can tell one."""
    found = await (await rig.box()).facts("readable", "/proc/self/status", "/proc/1/status")
    expect.that(["/proc/self/status"] in found, "/proc/self/status to be readable")


@GROUP.negative(control=harmless_kernel_files_are_readable, proves=("C7",))
async def telling_kernel_files_are_masked(rig: Rig) -> None:
    """Files that tell of the kernel's memory, keys and firmware are empty or closed; its switches cannot be written."""
    box = await rig.box()
    expect.equal(await box.facts("readable", *MASKED), [], "readable files")
    expect.equal(await box.facts("switches", *SWITCHES), [], "writable switches")


@GROUP.negative(control=harmless_kernel_files_are_readable, proves=("C9",))
async def only_harmless_devices(rig: Rig) -> None:
    """/dev holds the few devices that programs need, and no disk, memory or hypervisor."""
    names = {name.partition("/")[0] for name, _ in await (await rig.box()).facts("devices")}
    expect.that("null" in names, "/dev/null")
    expect.equal(sorted(set(names) - DEVICES), [], "other devices")


@GROUP.negative(control=harmless_kernel_files_are_readable, proves=("C10", "C23"))
async def the_agents_memory_is_out_of_reach(rig: Rig) -> None:
    """Environment, memory, descriptors and root of PID 1 cannot be read, and it cannot be traced."""
    box = await rig.box()
    expect.equal(await box.facts("readable", *AGENT_FILES), [], "readable files of PID 1")
    tried = await system_calls(rig, "handles")
    all_refused({name: tried[name] for name in TRACING})


@GROUP.negative(control=a_boxs_own_files_are_seen, proves=("C23",))
async def the_agents_files_are_out_of_reach(rig: Rig) -> None:
    """Commands can neither read the agent's journal nor write into its folders."""
    box = await rig.box()
    for path in AGENT_STATE:
        result = await box.sh(f"ls {path} && cat {path}")
        expect.that(result.exit_code not in (0, 127), f"{path} to be closed")
    for folder in ("/run/tiltyard", "/run/tiltyard/state", "/run/tiltyard/trusted"):
        result = await box.sh(f"test -d /run/tiltyard || exit 126; echo x > {folder}/probe")
        expect.that(result.exit_code not in (0, 126), f"{folder} to be there and closed to writing")


@GROUP.positive()
async def own_processes_can_be_signalled(rig: Rig) -> None:
    """A command may kill what it started."""
    expect.equal(await (await rig.box()).text("sleep 20 & kill -9 $! && echo killed"), "killed\n", "output")


@GROUP.negative(control=own_processes_can_be_signalled, proves=("C33",))
async def the_agent_cannot_be_signalled(rig: Rig) -> None:
    """PID 1 takes no signal from commands, and answers on."""
    async with rig.own_box() as box:
        for signal in ("KILL", "TERM", "STOP", "SEGV", "HUP"):
            result = await box.sh(f"kill -{signal} 1")
            expect.that(result.exit_code not in (0, 127), f"kill -{signal} 1 to be refused")
        await box.alive()


@GROUP.negative(control=own_processes_can_be_signalled, proves=("C33",))
async def killing_everything_spares_the_agent(rig: Rig) -> None:
    """`kill -9 -1` ends the box's commands, not its agent."""
    async with rig.own_box() as box:
        await box.sh("kill -9 -1; sleep 0.1")
        await box.alive()


@GROUP.negative(control=a_boxs_own_files_are_seen, proves=("C10",))
async def boxes_do_not_share_files(rig: Rig) -> None:
    """What one box writes to workspace, home, /tmp or shared memory is in no other."""
    box = await rig.box()
    mark = secrets.token_hex(8)
    places = (rig.spec.workdir, "/tmp", "/home/agent")  # noqa: S108  (in the box)
    await box.text("; ".join(f"echo x > {place}/{mark}" for place in places))
    async with rig.own_box() as other:
        for place in places:
            expect.equal((await other.sh(f"test -e {place}/{mark}")).exit_code, 1, f"{place}/{mark} in another box")
        await other.alive()


@GROUP.negative(control=own_processes_are_seen, proves=("C10",))
async def boxes_do_not_share_memory_or_processes(rig: Rig) -> None:
    """Processes, POSIX shared memory and message queues of one box are in no other."""
    box = await rig.box()
    mark = secrets.token_hex(8)
    made = dict(await box.facts("shared", "make", mark))
    await box.text(f"sleep 20.{int(mark[:6], 16)} & true")
    async with rig.own_box() as other:
        seen = dict(await other.facts("shared", "look", mark))
        processes = await other.facts("processes")
    expect.equal((made["sysv"], made["posix"]), ("ok", "ok"), "shared memory in the first box")
    expect.that("ok" not in seen.values(), f"no shared memory or queue in another box, found {seen}")
    expect.that(not any(f"20.{int(mark[:6], 16)}" in line for *_, line in processes), "no process of the other box")


@GROUP.negative(control=own_processes_are_seen, proves=("C10",))
async def namespaces_are_the_boxs_own(rig: Rig) -> None:
    """Processes, network, mounts, IPC and names are in namespaces of the box's own, not the machine's and not a neighbour's."""
    box = await rig.box()
    async with rig.own_box() as other:
        first, second = dict(await box.facts("namespaces")), dict(await other.facts("namespaces"))
    for name in ("ipc", "mnt", "net", "pid", "uts"):
        outside = await asyncio.to_thread(os.readlink, f"/proc/self/ns/{name}")
        expect.equal(len({first[name], second[name], outside}), 3, f"{name} namespaces of two boxes and the machine")


@GROUP.positive(proves=("C5",))
async def boxes_have_users_of_their_own(rig: Rig) -> None:
    """Two boxes do not share a user, so that neither's limits count for the other."""
    box = await rig.box()
    async with rig.own_box() as other:
        first, second = await box.text("id -u"), await other.text("id -u")
    expect.that(first != second, f"two users, found {first.strip()} twice")


@GROUP.positive(proves=("C10",))
async def hostname_tells_nothing(rig: Rig) -> None:
    """A box does not carry the machine's name."""
    name = (await (await rig.box()).text("cat /proc/sys/kernel/hostname")).strip()
    expect.that(name and name != os.uname().nodename, "another name than the machine's")
