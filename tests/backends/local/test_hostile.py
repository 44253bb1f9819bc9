"""What a command in a box can find of this machine and of whoever serves. Each look is tried where it succeeds, too."""

import asyncio
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.backends.local.backend import LocalBackend
from orchestrator.backends.local.settings import LocalSettings
from orchestrator.backends.local.spec import BoxPlan, command
from orchestrator.operations import Exec, ExecResult
from tests.backends.docker.boxes import Box
from tests.backends.local.conftest import Open, entered, open_box
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("bwrap", "libseccomp", "root")]

FIND_IN_ENVIRONMENTS = (
    "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '{}' || true"
)
CONNECT = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_UNIX)\n"
    "name = sys.argv[1].replace('@', chr(0), 1)\n"
    "try: s.connect(name); print('connected')\n"
    "except OSError: print('refused')\n"
)
PRIVATE = (
    *(
        "/root",
        "/home/*/.ssh",
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/sudoers",
        "/etc/ssh",
        "/etc/ssl/private",
        "/etc/pip.conf",
    ),
    *(
        "/etc/npmrc",
        "/etc/docker",
        "/etc/machine-id",
        "/var",
        "/run/docker.sock",
        "/var/run",
        "/run/tiltyard/uids",
        "/boot",
    ),
    *(
        "/srv",
        "/mnt",
        "/media",
        "/lost+found",
        "/work",
        "/dev/vda",
        "/dev/kvm",
        "/dev/mem",
        "/sys/class",
        "/sys/kernel",
        "/oldroot",
    ),
)


def output(*command: str) -> str:
    """Of a program of this machine, which inherits what can be inherited."""
    return subprocess.run(command, capture_output=True, text=True, close_fds=False, check=True).stdout


def setuid_program() -> str | None:
    return next((path for path in ("/usr/bin/su", "/usr/bin/mount") if os.stat(path).st_mode & 0o4000), None)


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret in the environment of whoever serves."""
    value = secrets.token_hex(16)
    monkeypatch.setenv("TILTYARD_SECRET", value)
    return value


async def test_no_environment_or_command_line_tells_of_us(canary: str, opened: Open, settings: LocalSettings) -> None:
    box = await opened(memory_mib=64)
    assert (await box.text(f'X={canary} sh -c "' + FIND_IN_ENVIRONMENTS.format(canary) + '"')).strip() != "0"
    assert (await box.text(FIND_IN_ENVIRONMENTS.format(canary[:-1] + "[" + canary[-1] + "]"))).strip() == "0"
    lines = await box.text("tr '\\0' ' ' </proc/1/cmdline")
    assert lines.strip() == "/tiltyard-agent serve --config /run/tiltyard/config.json"
    assert settings.deployment not in await box.text("env; cat /proc/self/environ")


async def test_an_open_file_of_ours_reaches_no_box(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.touch()
    with path.open() as leaked:
        os.set_inheritable(leaked.fileno(), True)
        box = await opened(memory_mib=64)
        own = await asyncio.to_thread(output, "ls", "-l", "/proc/self/fd")
    assert str(path) in own
    seen = await box.text("ls /proc/self/fd; ls -l /proc/self/fd")
    assert str(path) not in seen
    assert seen.split()[:4] == ["0", "1", "2", "3"]  # 3: the folder that ls reads


@pytest.fixture
def listeners() -> Iterator[tuple[str, str]]:
    """A socket with a name of this machine's file system, and one that only the network namespace keeps."""
    path, abstract = f"/run/tiltyard-test-{secrets.token_hex(4)}.sock", f"tiltyard-test-{secrets.token_hex(4)}"
    with closing(socket.socket(socket.AF_UNIX)) as named, closing(socket.socket(socket.AF_UNIX)) as unnamed:
        named.bind(path)
        unnamed.bind("\0" + abstract)
        named.listen()
        unnamed.listen()
        yield path, "@" + abstract
    os.unlink(path)


async def test_no_socket_of_the_machine_answers(shared: Box, listeners: tuple[str, str]) -> None:
    for name in listeners:
        assert await asyncio.to_thread(output, "python3", "-c", CONNECT, name) == "connected\n"
        result = await shared.run(Exec(argv=("python3", "-c", CONNECT, name), timeout_s=10))
        assert isinstance(result, ExecResult)
        assert result.stdout.head == b"refused\n"
    assert (await shared.text("find / -xdev -type s 2>/dev/null; find /run -type s 2>/dev/null || true")).split() == [
        "/run/tiltyard/agent.sock"
    ]


async def test_private_places_are_not_there(shared: Box) -> None:
    for path in ("/usr/bin/sh", "/etc/ld.so.cache", "/etc/passwd"):
        assert await shared.text(f"ls -d {path}") == f"{path}\n"
    found = await shared.sh(f"ls -d {' '.join(PRIVATE)} 2>/dev/null")
    assert found.stdout.head == b""
    assert os.environ.get("USER", "nobody-of-this-name") not in await shared.text("cat /etc/passwd | grep -v ^root")


async def test_a_setuid_program_raises_nobody(shared: Box) -> None:
    program = await asyncio.to_thread(setuid_program)
    assert program is not None, "Debian's su is setuid"
    assert "nosuid" in next(
        line for line in (await shared.text("cat /proc/self/mountinfo")).splitlines() if line.split()[4] == "/usr"
    )
    assert "Uid:\t0" not in await shared.text(
        f"({program} --version; true) >/dev/null 2>&1; grep Uid /proc/self/status"
    )


async def test_not_even_the_trusted_principal_can_turn_the_kernels_switches(backend: LocalBackend) -> None:
    box = await open_box(backend, grader=True, memory_mib=64)
    try:
        script = (
            "for f in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sys/kernel/hostname /proc/sysrq-trigger; "
            "do [ ! -e $f ] || ! (: >>$f) 2>/dev/null || echo $f; done; id -u; echo x > $TILTYARD_TRUSTED_DIR/control && echo wrote"
        )
        result = await box.run(Exec(argv=("sh", "-c", script), timeout_s=10, principal="trusted"))
        assert isinstance(result, ExecResult)
        assert result.stdout.head.split() == [b"0", b"wrote"]
    finally:
        await box.sandbox.aclose()
        await backend.destroy(box.sandbox.id)


async def test_the_machines_files_cannot_be_changed_by_the_trusted_principal(backend: LocalBackend) -> None:
    box = await open_box(backend, grader=True, memory_mib=64)
    try:
        script = "for d in / /usr /usr/bin /etc /dev /run /home /sys/fs/cgroup/pids; do (: >$d/probe) 2>/dev/null && echo $d; done; true"
        result = await box.run(Exec(argv=("sh", "-c", script), timeout_s=10, principal="trusted"))
        assert isinstance(result, ExecResult)
        assert result.stdout.head == b""
    finally:
        await box.sandbox.aclose()
        await backend.destroy(box.sandbox.id)


def without(*words: str) -> object:
    """A command line with one option (and its values) taken out: a mutant."""

    def line(plan: BoxPlan, *, seccomp_fd: int, status_fd: int) -> list[str]:
        made = command(plan, seccomp_fd=seccomp_fd, status_fd=status_fd)
        known = [str(seccomp_fd) if word == "SECCOMP" else word for word in words]
        for start in range(len(made)):
            if made[start : start + len(known)] == known:
                return made[:start] + made[start + len(known) :]
        raise AssertionError(f"{known} is not in the command line")

    return line


@pytest.mark.parametrize(
    ("words", "probe", "sound"),
    [
        (("--seccomp", "SECCOMP"), "grep -w Seccomp: /proc/self/status", "Seccomp:\t2"),
        (("--unshare-net",), "ls /sys/class/net 2>/dev/null; grep -c : /proc/net/dev", "1"),
        (("--unshare-uts",), "hostname", "sandbox"),
        (("--ro-bind-try", "/proc/sys", "/proc/sys"), "grep -c ' /proc/sys ' /proc/self/mountinfo || true", "1"),
        (("--ro-bind", "/dev/null", "/proc/kallsyms"), "head -c 9 /proc/kallsyms 2>/dev/null | wc -c", "0"),
        (("--remount-ro", "/dev"), "grep ' /dev ' /proc/self/mountinfo | grep -c ' ro,'", "1"),
    ],
)
async def test_a_weakened_box_is_seen(
    settings: LocalSettings, shared: Box, words: tuple[str, ...], probe: str, sound: str
) -> None:
    assert (await shared.sh(probe)).stdout.head.decode().split("\n")[0].strip() == sound
    if words == ("--unshare-uts",):
        words = ("--hostname", "sandbox")
    name = f"m-{secrets.token_hex(4)}"
    mutant = LocalSettings(deployment=name, state_dir=settings.state_dir.parent / name)
    async with entered(mutant, without(*words)) as weak:  # type: ignore[arg-type]
        box = await open_box(weak, memory_mib=64)
        try:
            seen = (await box.sh(probe)).stdout.head.decode().split("\n")[0].strip()
        finally:
            await box.sandbox.aclose()
            await weak.destroy(box.sandbox.id)
    assert seen != sound
