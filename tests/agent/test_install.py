"""`tiltyard-agent install`: a pod's init container."""

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from orchestrator.agent.binary import agent_binary
from tests.needs import needs

pytestmark = needs("root")


def install(root: Path, *more: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    config = json.dumps({"workspace": "/workspace"})
    words = [str(agent_binary()), "install", "--to", str(root / "run"), "--config", config, "--uid", "4242", *more]
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    return subprocess.run([*prefix, *words], capture_output=True, text=True, timeout=20, check=False)


def test_install_brings_the_program_and_the_folders_and_may_run_again(short_path: Path) -> None:
    folders = f"{short_path}/disk/workspace,{short_path}/disk/tmp"
    for _ in range(2):
        done = install(short_path, "--folders", folders)
        assert done.returncode == 0, done.stderr
    assert (short_path / "run" / "tiltyard-agent").read_bytes() == agent_binary().read_bytes()
    assert json.loads((short_path / "run" / "config.json").read_text()) == {"workspace": "/workspace"}
    workspace, tmp = (short_path / "disk" / name for name in ("workspace", "tmp"))
    assert (workspace.stat().st_uid, stat.S_IMODE(workspace.stat().st_mode)) == (4242, 0o755)
    assert stat.S_IMODE(tmp.stat().st_mode) == 0o1777


def test_install_works_without_root_where_it_may_write(short_path: Path) -> None:
    short_path.chmod(0o777)
    (short_path / "run").mkdir()
    (short_path / "run").chmod(0o777)
    program = short_path / "agent"
    program.write_bytes(agent_binary().read_bytes())
    program.chmod(0o755)
    words = [str(program), "install", "--to", str(short_path / "run"), "--config", "{}", "--uid", "4242"]
    words += ["--folders", str(short_path / "workspace")]
    command = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert (short_path / "workspace").stat().st_uid == 4242


@pytest.mark.parametrize("config", ["[]", "{", ""])
def test_install_refuses_what_is_no_configuration(short_path: Path, config: str) -> None:
    words = [str(agent_binary()), "install", "--to", str(short_path / "run"), "--config", config]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert not (short_path / "run" / "config.json").exists()


def test_a_folder_of_the_runs_own_is_closed_to_others(short_path: Path) -> None:
    """A node mounts an emptyDir with mode 0777."""
    run = short_path / "run"
    run.mkdir()
    run.chmod(0o777)
    assert install(short_path).returncode == 0
    assert stat.S_IMODE(run.stat().st_mode) == 0o755


def test_a_folder_for_all_is_for_all_whoever_owns_it(short_path: Path) -> None:
    done = install(short_path, "--uid", "0", "--folders", f"{short_path}/tmp")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((short_path / "tmp").stat().st_mode) == 0o1777


@pytest.mark.parametrize("name", ["relative", "/", "/a/../mine", "/link"])
def test_install_makes_folders_at_plain_places_only(short_path: Path, name: str) -> None:
    """A pod's containers may be started again: by then the commands had the folders. In a root of its own: "/" is not the machine's."""
    (short_path / "mine").mkdir()
    (short_path / "link").symlink_to("mine")
    shutil.copy(agent_binary(), short_path / "agent")
    before = short_path.stat()
    (short_path / "proc").mkdir()
    enter = f'mount -t proc proc {short_path}/proc && exec chroot {short_path} "$@"'
    words = [
        "unshare",
        "-m",
        "sh",
        "-c",
        enter,
        "-",
        "/agent",
        "install",
        "--to",
        "/run",
        "--config",
        "{}",
        "--uid",
        "4242",
    ]
    done = subprocess.run([*words, "--folders", name], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, "folder" in done.stderr) == (1, True), done.stderr
    assert {short_path.stat().st_uid, (short_path / "mine").stat().st_uid} == {before.st_uid}
    assert not (short_path / "relative").exists()


def test_install_needs_no_right_over_folders_of_an_earlier_try(short_path: Path) -> None:
    """As in a pod: CHOWN and nothing else."""
    words = [str(agent_binary()), "install", "--to", str(short_path / "run"), "--config", "{}", "--uid", "4242"]
    words += ["--folders", f"{short_path}/workspace,{short_path}/tmp"]
    caps = ["setpriv", "--bounding-set=-all,+chown", "--inh-caps=-all"]
    for _ in range(2):
        done = subprocess.run([*caps, *words], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
    assert (short_path / "tmp").stat().st_uid == 4242
    assert stat.S_IMODE((short_path / "tmp").stat().st_mode) == 0o1777
