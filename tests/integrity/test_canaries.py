"""C23: secrets of the server, planted in its environment, home and state, are nowhere in a box: no file, variable, command line, label."""

import json
import secrets
from pathlib import Path

import pytest

from tests.integrity.live import Live, backend, live
from tests.needs import needs

pytestmark = [pytest.mark.anyio, needs("docker", "root")]

PLACES = "/etc /home /opt /root /run /srv /tmp /usr/local /var /workspace /tiltyard-agent /dev/shm"
WORD = "canary-[0-9a-f][0-9a-f]*"
SEARCH = (
    f"{{ cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; env; grep -rsh --binary-files=text -e '{WORD}' {PLACES}; }}"
    f" | tr '\\0' '\\n' | grep -o '{WORD}' | sort -u"
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment, in a home, in an engine client's configuration, beside the state."""
    word = f"canary-{secrets.token_hex(8)}"
    for name in ("TILTYARD_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, word)
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    (home / ".docker/config.json").write_text(json.dumps({"HttpHeaders": {"X-Canary": word}}))
    (home / ".netrc").write_text(word)
    monkeypatch.setenv("HOME", str(home))
    return word


async def found(box: Live) -> set[str]:
    """Canaries that a command finds anywhere that it can read."""
    answer = await box.box.sh(SEARCH, timeout_s=60)
    assert not answer.timed_out
    return set(answer.stdout.head.decode().split())


async def test_C23_no_canary_of_the_server_is_anywhere_in_the_box(canary: str) -> None:
    async with backend() as made, live(made) as box:
        assert await found(box) == set()
        assert canary not in json.dumps({"config": box.inspected["Config"], "host": box.inspected["HostConfig"]})
        assert canary not in "".join(path.read_text() for path in box.agent_dir.glob("*.json"))


async def test_C23_a_canary_that_leaks_is_found(canary: str) -> None:
    """The control: in a file and in a process's environment."""
    async with backend() as made, live(made) as box:
        await box.box.text(f"echo {canary} > /tmp/leak; SECRET=canary-0abc sleep 64 >/dev/null 2>&1 &")
        assert await found(box) >= {canary, "canary-0abc"}
