"""Fetching: any commit, only when missing, with errors that name the fix and no secret."""

import http.server
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import Popen

import pytest
from structlog.testing import capture_logs

from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.gitcmd import explain
from orchestrator.repos.mirror import Mirrors, check_revision
from orchestrator.repos.pruning import CacheFolders
from orchestrator.repos.sources import parse_source
from tests.needs import needs
from tests.repos.conftest import Origin, Repo, soon

pytestmark = pytest.mark.anyio


@pytest.fixture
def mirrors(tmp_path: Path) -> Mirrors:
    return Mirrors(CacheFolders(tmp_path / "cache"))


async def fetched(mirrors: Mirrors, repo: str, sha: str, deadline: float | None = None) -> Repo:
    async with mirrors.holding(parse_source(repo), sha, deadline=deadline or soon()) as path:
        return Repo(path)


async def test_a_commit_comes_with_its_past_and_without_its_future(mirrors: Mirrors, origin: Origin) -> None:
    mirror = await fetched(mirrors, origin.path, origin.middle)
    assert mirror.git("log", "--format=%s", origin.middle) == "middle\nbase"
    with pytest.raises(Exception, match="non-zero"):
        mirror.git("cat-file", "-e", origin.gold_blob)


async def test_file_urls_and_bare_repositories_do_as_well(mirrors: Mirrors, origin: Origin, tmp_path: Path) -> None:
    bare = tmp_path / "bare clone.git"
    origin.repo.git("clone", "-q", "--bare", origin.path, str(bare))
    for repo in (f"file://{origin.path}", str(bare), f"file://{str(bare).replace(' ', '%20')}"):
        assert (await fetched(mirrors, repo, origin.base)).git("cat-file", "-t", origin.base) == "commit"


async def test_a_commit_that_is_there_is_not_fetched_again(mirrors: Mirrors, origin: Origin) -> None:
    await fetched(mirrors, origin.path, origin.middle)
    shutil.move(origin.path, origin.path + ".away")
    os.mkdir(origin.path)  # no repository any more
    await fetched(mirrors, origin.path, origin.middle)
    with pytest.raises(RepositoryError, match="no such repository"):
        await fetched(mirrors, origin.path, origin.future)


async def test_new_commits_are_fetched_when_asked_for(mirrors: Mirrors, origin: Origin) -> None:
    await fetched(mirrors, origin.path, origin.middle)
    later = origin.repo.commit({"later": "x\n"})
    assert (await fetched(mirrors, origin.path, later)).git("cat-file", "-t", later) == "commit"


async def test_a_commit_no_ref_reaches_is_fetched_by_name(mirrors: Mirrors, origin: Origin) -> None:
    origin.repo.git("reset", "-q", "--hard", origin.base)
    assert (await fetched(mirrors, origin.path, origin.future)).git("cat-file", "-t", origin.future) == "commit"


async def test_a_missing_commit_is_refused_with_the_fix(mirrors: Mirrors, origin: Origin) -> None:
    with pytest.raises(RepositoryError, match=f"origin has no commit {'ab' * 20}: push it there, or correct"):
        await fetched(mirrors, origin.path, "ab" * 20)


async def test_a_blob_or_tag_object_is_not_a_commit(mirrors: Mirrors, origin: Origin) -> None:
    origin.repo.git("tag", "-am", "one", "v1", origin.middle)
    for name in (origin.gold_blob, origin.repo.git("rev-parse", "v1")):
        with pytest.raises(RepositoryError):
            await fetched(mirrors, origin.path, name)


async def test_missing_repositories_are_named_without_their_path(mirrors: Mirrors, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="repository nowhere: there is no such folder") as caught:
        await fetched(mirrors, str(tmp_path / "nowhere"), "a" * 40)
    assert str(tmp_path) not in caught.value.message


async def test_a_folder_that_is_no_repository(mirrors: Mirrors, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match="no such repository") as caught:
        await fetched(mirrors, str(tmp_path / "empty"), "a" * 40)
    assert str(tmp_path) not in caught.value.message


async def test_a_shallow_clone_is_refused_with_the_fix(mirrors: Mirrors, origin: Origin, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    origin.repo.git("clone", "-q", "--depth=1", f"file://{origin.path}", str(shallow))
    with pytest.raises(RepositoryError, match="unshallow"):
        await fetched(mirrors, str(shallow), origin.future)


async def test_tags_and_abbreviations_are_pinned(mirrors: Mirrors, origin: Origin) -> None:
    origin.repo.git("tag", "-am", "one", "v1", origin.middle)
    origin.repo.git("tag", "light/2", origin.base)
    source = parse_source(origin.path)
    assert await mirrors.pin(source, "v1", deadline=soon()) == origin.middle
    assert await mirrors.pin(source, "refs/tags/v1", deadline=soon()) == origin.middle
    assert await mirrors.pin(source, "light/2", deadline=soon()) == origin.base
    assert await mirrors.pin(source, origin.middle[:10], deadline=soon()) == origin.middle
    assert await mirrors.pin(source, origin.middle, deadline=soon()) == origin.middle


async def test_branches_are_refused_with_todays_commit(mirrors: Mirrors, origin: Origin) -> None:
    with pytest.raises(Misconfigured, match=f"'main' is a branch, which moves: .* {origin.future}"):
        await mirrors.pin(parse_source(origin.path), "main", deadline=soon())


async def test_unknown_names_are_refused(mirrors: Mirrors, origin: Origin) -> None:
    with pytest.raises(RepositoryError, match="no commit or tag 'v9'"):
        await mirrors.pin(parse_source(origin.path), "v9", deadline=soon())


@pytest.mark.parametrize("revision", ["", "HEAD", "HEAD~1", "main^", "-x", "a..b", "v1@{1}", "x:y", "a b", "v1.lock"])
async def test_expressions_are_refused(revision: str) -> None:
    check_revision("v1.0")
    with pytest.raises(Misconfigured, match="full SHA"):
        check_revision(revision)


async def test_what_a_killed_git_left_is_cleared(mirrors: Mirrors, origin: Origin) -> None:
    mirror = await fetched(mirrors, origin.path, origin.base)
    lock = mirror.path / "refs" / "tiltyard" / "commits" / f"{origin.middle}.lock"
    lock.write_text("")
    (mirror.path / "objects" / "pack" / "tmp_pack_x").write_text("half")
    with pytest.raises(Exception, match="non-zero"):
        mirror.git("update-ref", f"refs/tiltyard/commits/{origin.middle}", origin.base)  # git itself minds
    await fetched(mirrors, origin.path, origin.middle)
    assert not lock.exists()
    assert not list(mirror.path.glob("objects/pack/tmp_*"))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"git://127.0.0.1:{server.getsockname()[1]}/repo"


async def test_a_silent_server_is_given_up_in_time(mirrors: Mirrors, silent_server: str) -> None:
    started = time.monotonic()
    with pytest.raises(RepositoryError, match="did not end in time"):
        await fetched(mirrors, silent_server, "a" * 40, soon(0.7))
    assert time.monotonic() - started < 10


async def test_no_time_is_no_attempt(mirrors: Mirrors, origin: Origin) -> None:
    with pytest.raises(RepositoryError, match="try again"):
        await fetched(mirrors, origin.path, origin.middle, time.monotonic() - 1)


def fetching_children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue  # it ended between the listing and the reading
        if fields["Name"] == "git" and int(fields["PPid"]) == pid and b"\0fetch\0" in command:
            found.append(int(path.parent.name))
    return found


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


async def test_git_dies_with_a_killed_server(
    silent_server: str, worker: Callable[..., Popen[str]], tmp_path: Path
) -> None:
    process = worker("fetch", tmp_path / "cache", silent_server, "a" * 40)
    assert until(lambda: bool(fetching_children(process.pid)))
    (child,) = fetching_children(process.pid)
    process.kill()
    assert until(lambda: ended(child))


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Static files (git's dumb protocol), or 401 for all where a password is wanted."""

    wanted = ""

    def do_GET(self) -> None:
        if self.wanted and self.headers.get("Authorization") != self.wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def web(origin: Origin, tmp_path: Path) -> Iterator[str]:
    origin.repo.git("clone", "-q", "--bare", origin.path, str(tmp_path / "web" / "repo.git"))
    Repo(tmp_path / "web" / "repo.git").git("update-server-info")
    handler = type("Handler", (_Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    _Handler.wanted = ""
    yield f"127.0.0.1:{server.server_port}/repo.git"
    _Handler.wanted = ""
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_server_that_gives_no_commits_by_name(mirrors: Mirrors, web: str, origin: Origin) -> None:
    mirror = await fetched(mirrors, f"http://{web}", origin.middle)
    assert mirror.git("cat-file", "-t", origin.middle) == "commit"
    with pytest.raises(RepositoryError, match=f"has no commit {'ab' * 20}"):
        await fetched(mirrors, f"http://{web}", "ab" * 20)


async def test_the_password_of_a_url_is_used_and_kept_secret(mirrors: Mirrors, web: str, origin: Origin) -> None:
    _Handler.wanted = "Basic dXNlcjpzM2NyZXQh"  # user:s3cret!
    await fetched(mirrors, f"http://user:s3cret%21@{web}", origin.middle)
    with capture_logs() as logs, pytest.raises(RepositoryError, match="access was refused") as caught:
        await fetched(mirrors, f"http://user:wr0ng@{web}", origin.middle)
    assert logs
    for text in (caught.value.message, str(logs), repr(caught.value.__cause__)):
        assert "wr0ng" not in text


async def test_nothing_secret_is_kept_on_disk(mirrors: Mirrors, web: str, origin: Origin, tmp_path: Path) -> None:
    _Handler.wanted = "Basic dXNlcjpzM2NyZXQh"
    await fetched(mirrors, f"http://user:s3cret%21@{web}", origin.middle)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"s3cret" not in kept
    assert b"dXNlcjpz" not in kept


async def test_a_server_that_is_down(mirrors: Mirrors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RepositoryError, match="cannot be reached"):
        await fetched(mirrors, f"http://127.0.0.1:{port}/x", "a" * 40)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("error: write failed: No space left on device", "disk is full"),
        ("fatal: detected dubious ownership in repository at '/x'", "another user"),
        ("fatal: Authentication failed for 'https://u:p@x/'", "access was refused"),
        ("fatal: could not read Username for 'https://x': terminal prompts disabled", "access was refused"),
        ("git@x: Permission denied (publickey).", "access was refused"),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", "cannot be reached"),
        ("fatal: '/x' does not appear to be a git repository", "no such repository"),
        ("remote: Repository not found.", "no such repository"),
        ("fatal: mismatched algorithms: client sha1; server sha256", "SHA-256"),
        ("something new", "git fetch failed with status 128"),
    ],
)
async def test_what_git_says_is_put_in_our_words(stderr: str, words: str) -> None:
    text = explain(stderr, "fetch", 128)
    assert words in text
    assert "/x" not in text


@needs("root")
async def test_a_repository_of_another_user_is_refused_with_the_fix(mirrors: Mirrors, origin: Origin) -> None:
    for path in (origin.repo.path, *origin.repo.path.rglob("*")):
        os.lchown(path, 12345, 12345)
    with pytest.raises(RepositoryError, match="belongs to another user"):
        await fetched(mirrors, origin.path, origin.middle)
