"""A task over the repository that its image brings along, from the first call to the reward, over a real engine."""

import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.backends.docker.imaged import image_with
from tests.e2e.harness import BROKEN, HIDDEN_TEST, Trainer, make_repository, serving
from tests.needs import needs
from tests.repos.conftest import Repo

pytestmark = [needs("docker", "root"), pytest.mark.anyio]

LOOK = "find / -xdev -name '*FUTURE*' 2>/dev/null; git log --all --oneline; git tag; git reflog; git stash list; git fsck --lost-found 2>&1"


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """HEAD is the commit with the bug; tags, packed refs, a stash and unreachable objects hold the mend. A module is built in place."""
    folder = tmp_path / "testbed"
    base = make_repository(folder)
    repo = Repo(folder)
    repo.git("tag", "v2")
    repo.git("reset", "-q", "--hard", base)
    (folder / "calc.py").write_text("FUTURE-MARK in a stash\n")
    repo.git("stash")
    repo.git("pack-refs", "--all")
    (folder / ".gitignore").write_text("*.built\n")
    (folder / "fast.built").write_text("compiled here\n")
    assert "FUTURE-MARK" in repo.git("log", "--all", "--format=%s"), "positive control"
    with image_with(folder, "/testbed") as name:
        yield name


def rows(image: str) -> list[dict[str, object]]:
    common: dict[str, object] = {"workspace": "image:/testbed", "image": image, "prompt": "Mend add()."}
    common |= {"limits": {"memory_mib": 256, "disk_mib": 64, "pids": 128}}
    tests = {"hidden": [{"path": "test_calc.py", "text": HIDDEN_TEST}], "fail_to_pass": ["test_calc.py::test_add"]}
    tests |= {"pass_to_pass": ["test_calc.py::test_zero"]}
    files = {"source": "submitted", "gold": ["calc.py"]}
    setup = ["pwd > where.txt; git rev-list --count HEAD >> where.txt; touch /opt/set-up"]
    return [
        {"id": "tests", **common, "grader": "tests", "tests": tests},
        {"id": "set-up", **common, "grader": "tests", "tests": tests, "setup": setup},
        {"id": "files", **common, "grader": "file_f1", "file_f1": files},
    ]


async def test_the_repository_of_the_image_is_worked_on_and_graded_in_its_place(image: str, tmp_path: Path) -> None:
    async with serving(tmp_path, rows(image)) as server, aiohttp.ClientSession() as session:

        def rollout(trace: str, task: str) -> Trainer:
            return Trainer(server, trace, task, session)

        good = rollout("good", "tests")
        assert (await good.call("1", "shell", command="pwd; cat fast.built; cat calc.py")).startswith(
            f"/testbed\ncompiled here\n{BROKEN}"
        )
        assert "FUTURE-MARK" not in await good.call("2", "shell", command=LOOK)
        assert "FUTURE-MARK" not in await good.call(
            "3",
            "shell",
            command="git cat-file --batch-all-objects --batch --unordered; cat /proc/self/root/testbed/calc.py",
        )
        assert (await good.call("4", "shell", command="umount /testbed; umount -l .; echo $?")).rstrip().endswith("32")
        await good.call("5", "edit_file", path="/testbed/calc.py", old="a - b", new="a + b")
        assert await good.grade() == 1.0
        idle = rollout("idle", "tests")
        await idle.call("1", "list_dir")
        assert await idle.grade() == 0.0

        made = rollout("made", "set-up")
        assert await made.call("1", "shell", command="cat where.txt; ls /opt/set-up fast.built") == (
            "/testbed\n1\n/opt/set-up\nfast.built\n"
        )
        await made.call("2", "shell", command="sed -i s/-/+/ calc.py")
        assert await made.grade() == 1.0

        named = rollout("named", "files")
        await named.call("1", "submit", files=["/testbed/calc.py"])
        assert await named.grade() == 1.0
        shown = json.dumps(server.log())
        assert "image_has_other_repositories" not in shown
