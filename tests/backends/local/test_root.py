"""What of the machine a box sees: an allow-list, whatever else is there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from orchestrator.backends.local.root import OWN_ETC, check_shown, copy_etc, forget_unfinished, read_root
from orchestrator.backends.local.spec import MASKED, MASKED_FOLDERS
from orchestrator.errors import Misconfigured


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    public = ("ld.so.cache", "ssl/certs/ca.pem", "passwd", "alternatives/awk")
    private = ("shadow", "ssl/private/key.pem", "ssh/ssh_host_key", "pip.conf", "gitconfig", "environment", "profile")
    for name in (*public, *private, "ssl/certs/closed.pem"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the machine's {name}")
        path.chmod(0o644)
    (folder / "ssl/certs/closed.pem").chmod(0o600)
    (folder / "localtime").symlink_to("/usr/share/zoneinfo/UTC")
    return folder


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_of_etc_only_what_is_named_and_public_is_copied(etc: Path, tmp_path: Path) -> None:
    made = copy_etc(etc, tmp_path / "copies")
    assert listed(made) == {"ld.so.cache", "ssl/certs/ca.pem", "alternatives/awk", "localtime", *OWN_ETC}
    assert "the machine" not in (made / "passwd").read_text()


def test_the_same_machine_gives_the_same_copy_and_leaves_no_other(etc: Path, tmp_path: Path) -> None:
    made = copy_etc(etc, tmp_path / "copies")
    assert copy_etc(etc, tmp_path / "copies") == made
    (etc / "ld.so.cache").write_text("changed")
    assert copy_etc(etc, tmp_path / "copies") != made
    assert len(list((tmp_path / "copies").iterdir())) == 2


def test_whoever_races_gets_the_same_copy(etc: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as racers:
        for lap in range(20):
            target = tmp_path / f"copies{lap}"
            together = Barrier(8)

            def copy(target: Path = target, together: Barrier = together) -> Path:
                together.wait()
                return copy_etc(etc, target)

            made = {racer.result() for racer in [racers.submit(copy) for _ in range(8)]}
            assert list(target.iterdir()) == [*made]


def test_a_copy_that_was_not_finished_is_forgotten(tmp_path: Path) -> None:
    made = copy_etc(Path("/etc"), tmp_path / "etc")
    (tmp_path / "etc" / ".building-x").mkdir()
    forget_unfinished(tmp_path)
    assert list((tmp_path / "etc").iterdir()) == [made]


@pytest.mark.parametrize("path", ["/", "/home", "/root", "/etc/ssl", "/var/lib", "/run", "/proc/1", "relative"])
def test_private_places_cannot_be_shown(path: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="local_paths"):
        check_shown((Path(path),), tmp_path)


def test_neither_can_the_state_folder_nor_what_holds_it_nor_a_link(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        check_shown((Path("/srv/state/deployment"),), Path("/srv/state"))
    with pytest.raises(Misconfigured, match="no folder"):
        check_shown((Path("/usr/no-such-folder"),), tmp_path)
    with pytest.raises(Misconfigured):
        check_shown((Path("/bin"),), tmp_path)
    check_shown((Path("/usr/share"),), tmp_path)


def test_of_this_machine_usr_is_shown_and_nothing_private(tmp_path: Path) -> None:
    root = read_root(tmp_path, (), MASKED, MASKED_FOLDERS)
    assert root.binds["/usr"] == Path("/usr")
    assert set(root.binds) | set(root.links) <= {
        *("/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"),
    }
    assert not (root.etc / "shadow").exists()
    assert "/proc/keys" in root.masked
