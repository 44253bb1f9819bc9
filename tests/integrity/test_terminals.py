"""C30: nothing types into a terminal, not even into one that a command made for itself; other requests of terminals work."""

from pathlib import Path

import pytest

from tests.integrity.live import Live, backend, live
from tests.integrity.weaken import MUTANTS
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

TYPE = """
import ctypes, errno, fcntl, os, sys, termios
leader, own = os.openpty()
if os.fork() == 0:
    os.setsid()
    fcntl.ioctl(own, termios.TIOCSCTTY, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (termios.TIOCGWINSZ, termios.TIOCSTI, termios.TIOCSTI | 1 << 32, termios.TIOCSTI | 0xFFFFFFFF << 32):
        room = ctypes.create_string_buffer(8)
        failed = libc.ioctl(own, ctypes.c_ulong(request), room)
        print(errno.errorcode[ctypes.get_errno()] if failed else 'ok')
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""
"""A terminal of the command's own: asks its size, then types, with the request as it is and with higher bits that the kernel ignores."""
LEGACY = Path("/proc/sys/dev/tty/legacy_tiocsti")
WITHOUT_FILTER = next(mutant for mutant in MUTANTS if mutant.name == "no seccomp")


async def answers(box: Live) -> list[str]:
    return (await box.box.text(f'python3 -I -c "{TYPE}"')).split()


async def test_C30_typing_is_refused_and_asking_works() -> None:
    async with backend() as made, live(made) as box:
        assert await answers(box) == ["ok", "EPERM", "EPERM", "EPERM"]


@pytest.mark.skipif(
    LEGACY.exists() and LEGACY.read_text().strip() == "0",
    reason="the kernel itself refuses TIOCSTI: dev.tty.legacy_tiocsti is 0",
)
async def test_C30_a_mutant_without_filter_types() -> None:
    async with backend(weaken=WITHOUT_FILTER.weaken) as made, live(made) as box:
        assert await answers(box) == ["ok"] * 4
