"""Plain git, through GitPython's command object, in an environment where no repository can make it run anything.

Only commands that read or write object stores, refs and fresh work trees are issued, never inside a folder that a box could write to. No shell,
no hooks, no filters, no helpers, no pagers, no configuration but ours. `git.Git` starts one process per command and keeps none: nothing to close.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from orchestrator.errors import Misconfigured, RepositoryError
from orchestrator.repos.sources import Source

log = structlog.get_logger(__name__)

_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "XDG_CONFIG_HOME": os.devnull,  # no attributes or ignore file of the user's
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
}

_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.fsmonitor": "false",
    "core.alternateRefsCommand": "true",
    "core.logAllRefUpdates": "false",
    "credential.helper": "",
    "fetch.recurseSubmodules": "false",
    "fetch.unpackLimit": "1",
    "fetch.writeCommitGraph": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.version": "2",
    "submodule.recurse": "false",
    "transfer.advertiseSID": "false",
}

_LOGGED_CHARACTERS = 600
_LONGEST_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GitResult:
    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "surrogateescape").strip()

    def records(self) -> Iterator[bytes]:
        """NUL-terminated records of the output."""
        return (record for record in self.stdout.split(b"\0") if record)


def attempt(
    folder: Path,
    *arguments: str,
    deadline: float,
    config: Mapping[str, str] | None = None,
    extra_environment: Mapping[str, str] | None = None,
) -> GitResult:
    """Run git in `folder` until `deadline` (monotonic); any exit status is an answer. `config` travels in the environment. Blocks.

    Raises RepositoryError (time is up), Misconfigured (git is missing).
    """
    try:
        from git import Git  # imported late: it looks for git while it is imported
        from git.exc import GitCommandNotFound
    except ImportError as error:
        raise Misconfigured("git was not found: install it (apt-get install git)") from error
    left_s = min(deadline - time.monotonic(), _LONGEST_S)
    if left_s <= 0:
        raise _too_slow(arguments)
    environment = {
        **_ENVIRONMENT,
        "GIT_CEILING_DIRECTORIES": str(folder.parent),  # a broken repository is an error, never the one around it
        **_config_variables(config or {}),
        **(extra_environment or {}),
    }
    try:
        status, stdout, stderr = Git(str(folder)).execute(
            _command(folder, arguments, inherited_to_drop(os.environ, environment)),
            with_extended_output=True,
            with_exceptions=False,
            stdout_as_string=False,
            strip_newline_in_stdout=False,
            kill_after_timeout=left_s,
            env=environment,
            umask=0o022,
        )
    except GitCommandNotFound as error:
        raise Misconfigured("git, env or setpriv was not found: apt-get install git util-linux coreutils") from error
    if status and time.monotonic() >= deadline:
        raise _too_slow(arguments)
    return GitResult(status=status, stdout=stdout, stderr=stderr)


def run(
    folder: Path, *arguments: str, deadline: float, extra_environment: Mapping[str, str] | None = None
) -> GitResult:
    """`attempt`, where a non-zero status is a RepositoryError."""
    result = attempt(folder, *arguments, deadline=deadline, extra_environment=extra_environment)
    if result.status:
        raise failed(result, arguments[0], None)
    return result


def failed(result: GitResult, command: str, source: Source | None) -> RepositoryError:
    """The error for a git command that did not succeed; what git said goes to the log, redacted."""
    said = source.redact(result.stderr) if source else result.stderr
    log.warning("git_failed", command=command, status=result.status, stderr=said[-_LOGGED_CHARACTERS:])
    name = f"repository {source.name}" if source else "the repository"
    return RepositoryError(f"{name}: {explain(result.stderr, command, result.status)}")


_EXPLANATIONS = (
    (
        ("No space left on device", "Disk quota exceeded"),
        "the disk is full: free space, or prune mirrors and templates",
    ),
    (("dubious ownership",), "it belongs to another user: chown it to the user tiltyard runs as, or name it by URL"),
    (
        ("shallow update not allowed", "shallow file has changed"),
        "it is a shallow clone: run `git fetch --unshallow` in it",
    ),
    (
        (
            "Authentication failed",
            "could not read Username",
            "Permission denied",
            "HTTP 401",
            "error: 401",
            "error: 403",
        ),
        "access was refused: check the user name and token in the task's repo, or the machine's SSH key",
    ),
    (
        (
            "Could not resolve host",
            "Connection refused",
            "Connection timed out",
            "unable to access",
            "Could not connect",
        ),
        "its server cannot be reached from here: check the URL and the machine's network",
    ),
    (
        ("does not appear to be a git repository", "not found", "does not exist", "not a git repository"),
        "there is no such repository: correct the task's repo",
    ),
    (
        ("missing blob", "missing tree", "bad object", "unable to read", "promisor", "did not send all necessary"),
        "objects are missing: it is damaged or a partial clone; clone it again in full",
    ),
    (("invalid path",), "the commit holds a path that git refuses to check out"),
    (("mismatched algorithms", "unsupported object format"), "it uses SHA-256 object names, which are not supported"),
)


def explain(stderr: str, command: str, status: int) -> str:
    """What went wrong and what to do, in words of ours: git's own hold paths and URLs."""
    for needles, words in _EXPLANATIONS:
        if any(needle in stderr for needle in needles):
            return words
    return f"git {command} failed with status {status}; the log has what it said"


def inherited_to_drop(inherited: Iterable[str], ours: Mapping[str, str]) -> tuple[str, ...]:
    """Names of GIT_* variables that this process was started with (inside a git hook, say) and that would redirect ours."""
    return tuple(sorted(name for name in inherited if name.startswith("GIT_") and name not in ours))


def _command(folder: Path, arguments: tuple[str, ...], drop: tuple[str, ...]) -> list[str]:
    """git in `folder`, killed with the thread that waits for it, without the variables to drop.

    `-C` beside the working folder: GitPython falls back to this process's own when it cannot enter it.
    """
    command = ["setpriv", "--pdeathsig", "KILL", "--", "env"]
    for name in drop:
        command += ["-u", name]
    command += ["git", "-C", str(folder)]
    for key, value in _CONFIG.items():
        command += ["-c", f"{key}={value}"]
    return [*command, *arguments]


def _config_variables(config: Mapping[str, str]) -> dict[str, str]:
    variables = {"GIT_CONFIG_COUNT": str(len(config))} if config else {}
    for number, (key, value) in enumerate(config.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _too_slow(arguments: tuple[str, ...]) -> RepositoryError:
    return RepositoryError(f"git {arguments[0]} did not end in time: try again, or allow more time")
