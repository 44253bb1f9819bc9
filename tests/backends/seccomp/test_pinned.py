"""A filter that is missing, broken or too wide is refused before anything runs, with words that name it."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.docker.backend import DockerBackend
from orchestrator.backends.docker.settings import DockerSettings
from orchestrator.backends.seccomp import profile, with_routes
from orchestrator.backends.seccomp.pinned import pinned
from orchestrator.errors import Misconfigured
from orchestrator.repos.workspace import make_workspaces


def weakened(change: Callable[[Any], None]) -> str:
    found = json.loads(pinned().read_text())
    change(found)
    return json.dumps(found)


def allow(*names: str, **args: int) -> Callable[[Any], None]:
    entry = {"names": names, "action": "SCMP_ACT_ALLOW", "args": [{**args, "op": "SCMP_CMP_EQ"}] if args else []}
    return lambda found: found["syscalls"].append(entry)


def test_the_pinned_filter_is_compact_and_says_the_same(tmp_path: Path) -> None:
    text = profile()
    assert "\n" not in text
    assert "comment" not in text
    again = tmp_path / "again.json"
    again.write_text(text)
    assert profile(again) == text


def test_a_stricter_filter_of_ones_own_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(weakened(lambda found: found["syscalls"].pop(1)))
    assert '"ptrace"' in profile()
    assert '"ptrace"' not in profile(path)


BROKEN = {
    "empty": ("", "is broken"),
    "torn": (pinned().read_text()[:-200], "is broken"),
    "not a filter": ('["tiltyard"]', "is broken"),
    "allows by default": (weakened(lambda found: found.update(defaultAction="SCMP_ACT_ALLOW")), "defaultAction"),
    "only logs": (weakened(lambda found: found.update(defaultAction="SCMP_ACT_LOG")), "defaultAction"),
    "32-bit programs": (
        weakened(lambda found: found["archMap"][0].update(subArchitectures=["SCMP_ARCH_X86"])),
        "archMap",
    ),
    "nothing": (weakened(lambda found: found.update(syscalls=[])), "syscalls"),
    "a condition that we do not know": (weakened(lambda found: found["syscalls"][0].update(includes={})), "includes"),
    "io_uring": (weakened(allow("io_uring_setup")), "no box may do: io_uring_setup"),
    "mounts": (weakened(allow("mount", index=1, value=0)), "no box may do: mount"),
    "every socket": (weakened(allow("socket")), "no box may do: socket"),
    "every clone": (weakened(allow("clone")), "no box may do: clone"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_or_too_wide_filter_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=words) as raised:
        profile(path)
    assert "broken.json" in raised.value.message


@pytest.mark.anyio
async def test_a_backend_does_not_start_under_a_missing_filter(short_path: Path) -> None:
    """Refused before the engine is asked anything: the socket is nobody's."""
    missing = short_path / "missing.json"
    settings = DockerSettings(
        deployment=f"t-{secrets.token_hex(4)}",
        host_id="test",
        state_dir=short_path,
        socket=f"unix://{short_path}/nobody.sock",
        seccomp_profile=missing,
    )
    with pytest.raises(Misconfigured, match="cannot be read"):
        async with DockerBackend(settings, make_workspaces(short_path, settings.deployment)):
            pass


def test_programs_of_ours_may_look_at_interfaces_and_nothing_else_is_changed() -> None:
    boxes, ours = json.loads(profile()), json.loads(with_routes(profile()))
    gone = [entry for entry in boxes["syscalls"] if entry not in ours["syscalls"]]
    come = [entry for entry in ours["syscalls"] if entry not in boxes["syscalls"]]
    netlink = [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}]
    assert [entry.get("args") for entry in (*gone, *come)] == [netlink, netlink]
    assert [entry["action"] for entry in (*gone, *come)] == ["SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"]
    assert {**boxes, "syscalls": None} == {**ours, "syscalls": None}
