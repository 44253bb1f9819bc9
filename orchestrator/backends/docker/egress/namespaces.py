"""Network namespaces of containers, changed with `ip` and `iptables` from this machine; needs root."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.egress.addresses import refused
from orchestrator.errors import Misconfigured, StartFailed

COMMANDS = ("ip", "iptables-restore", "nsenter")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_TIMEOUT_S = 20.0
"""A command takes milliseconds; on a machine whose processors are all taken, seconds."""
NO_DEVICE = "Cannot find device"


def missing_commands() -> list[str]:
    return [command for command in COMMANDS if shutil.which(command, path=PATH) is None]


async def connect(box: Path, box_end: str, proxy: Path, proxy_end: str) -> None:
    """A wire (veth) between two namespaces; both ends are down. Raises StartFailed."""
    await _run(
        "ip", "link", "add", "name", proxy_end, "netns", str(proxy),
        "type", "veth", "peer", "name", box_end, "netns", str(box),
    )  # fmt: skip


async def disconnect(namespace: Path, end: str) -> None:
    """Both ends are gone when this returns. Gone already is fine. Raises StartFailed."""
    try:
        await _run("nsenter", f"--net={namespace}", "ip", "link", "delete", "dev", end)
    except StartFailed as error:
        if NO_DEVICE not in error.message:
            raise


async def configure(namespace: Path, lines: Sequence[str]) -> None:
    """`lines` of `ip -batch`, all or an error. Raises StartFailed."""
    await _run("nsenter", f"--net={namespace}", "ip", "-batch", "-", given="\n".join(lines) + "\n")


async def guard(namespace: Path, rules: str) -> None:
    """Replace the tables that `rules` (of iptables-restore) names. Raises StartFailed."""
    await _run("nsenter", f"--net={namespace}", "iptables-restore", "--wait", "5", given=rules)


async def own_addresses() -> tuple[str, ...]:
    """This machine's IPv4 addresses that lie in no refused range, in order. Raises StartFailed."""
    found = json.loads(await _run("ip", "-json", "-4", "address", "show"))
    here = {str(each["local"]) for link in found for each in link.get("addr_info", [])}
    return tuple(sorted(address for address in here if not refused(address)))


async def _run(*command: str, given: str = "") -> str:
    """Standard output. Raises StartFailed with the command's words, Misconfigured where it is not installed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except OSError as error:
        raise Misconfigured(f"{command[0]} cannot be run: apt-get install iproute2 util-linux iptables") from error
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            output, errors = await process.communicate(given.encode())
    except TimeoutError:
        raise StartFailed(f"{command[0]} did not end within {COMMAND_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = " ".join(errors.decode("utf-8", "replace").split())[:300]
        raise StartFailed(f"the box's network could not be wired: {words}")
    return output.decode("utf-8", "replace")
