"""The Engine API as awaitables: every request in a thread of this class's own pool, every failure in our tree of errors."""

import asyncio
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import requests.exceptions
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from orchestrator.backends.docker import facts
from orchestrator.backends.docker.facts import ContainerState, EngineFacts, ImageFacts, ListedContainer, tidy
from orchestrator.backends.finish import finish
from orchestrator.errors import EngineUnavailable, Misconfigured, StartFailed
from orchestrator.models import JsonValue

log = logging.getLogger(__name__)
T = TypeVar("T")

THREADS = 16
"""Requests to the engine at once: starts are few (start slots), removals and looks come in bursts."""
CONFLICT = 409
SERVER_ERROR = 500
ARCHIVE_BUFFER_BYTES = 1024 * 1024
REMOVAL_POLL_S = 0.05
LONGEST_PAUSE_S = 0.5
ANY_VERSION = "1.41"
"""For a request without a version in its path; engines refuse both what is newer and what is much older than they are."""
UNKNOWN_RUNTIME = re.compile(r"unknown (or invalid )?runtime", re.IGNORECASE)
"""Engines before 23 say "Unknown runtime specified X", later ones "unknown or invalid runtime name: X"."""


class Engine:
    """Owner of the connection pool and of the threads; connects on first use, so that an engine may come up later.

    Raises (every method): EngineUnavailable when the engine does not answer. A request that began is always seen to its end, also when the
    caller is cancelled: otherwise a box could appear after its owner went to remove it.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="docker")
        self._connecting = threading.Lock()
        self._api: APIClient | None = None

    async def aclose(self) -> None:
        """Idempotent; waits for requests that run."""
        loop = asyncio.get_running_loop()
        await finish(loop.run_in_executor(None, self._threads.shutdown))
        self._forget_connection()

    async def facts(self) -> EngineFacts:
        info, version = await self._call(lambda api: (api.info(), api.version()))
        return facts.engine_facts(info, version)

    async def create(self, name: str, body: Mapping[str, JsonValue]) -> str:
        """The new container's id. Raises Misconfigured (no such image or runtime), StartFailed."""
        created = await self._call(lambda api: api.create_container_from_config(dict(body), name=name))
        return str(created["Id"])

    async def start(self, container: str) -> None:
        """Raises StartFailed with the engine's words."""
        await self._call(lambda api: api.start(container))

    async def inspect(self, container: str) -> ContainerState | None:
        """By id or name; None when there is none."""
        found = await self._call(lambda api: _absent_as_none(api.inspect_container, container))
        return None if found is None else facts.container_state(found)

    async def containers(self, labels: Mapping[str, str]) -> Sequence[ListedContainer]:
        """All, running or not, that carry every one of `labels`."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        found = await self._call(lambda api: api.containers(all=True, filters={"label": wanted}))
        return [facts.listed_container(entry) for entry in found]

    async def remove(self, container: str) -> None:
        """Kill and remove; returns when the engine no longer knows it. Gone already is fine, and so are others who remove it, too.

        Raises EngineUnavailable when it is still there after the engine's time-out.
        """
        deadline = time.monotonic() + self._timeout_s
        while not await self._call(lambda api: _removed(api, container)):
            if time.monotonic() > deadline:
                raise EngineUnavailable(f"the engine did not remove a container within {self._timeout_s:g} s")
            await asyncio.sleep(REMOVAL_POLL_S)

    async def kill(self, container: str) -> None:
        """End its processes; gone or ended already is fine."""
        await self._call(lambda api: _killed(api, container))

    async def memory_share(self, container: str) -> float:
        """What its processes hold for good, as a share of its limit; page cache does not count. 0.0 where the engine does not say."""
        found = await self._call(lambda api: api.stats(container, stream=False, one_shot=True))
        return facts.memory_share(found)

    async def killed_from_outside(self, container: str, since: float) -> bool:
        """Whether the engine was asked to kill or stop it, as far as its memory of events reaches (some hundred events)."""
        window = {"since": f"{since:.6f}", "until": f"{time.time():.6f}"}  # what lies ahead would be waited for
        wanted = {"container": [container], "event": ["kill", "stop"]}
        return await self._call(lambda api: any(True for _ in api.events(filters=wanted, decode=True, **window)))

    async def image(self, reference: str) -> ImageFacts | None:
        found = await self._call(lambda api: _absent_as_none(api.inspect_image, reference))
        return None if found is None else facts.image_facts(found)

    async def wait_exit(self, container: str, *, deadline: float) -> ContainerState | None:
        """Its state once it runs no more; None when it is gone. Looks again and again, so that a caller may leave at any time.

        Raises TimeoutError at `deadline` (time.monotonic()).
        """
        for pause_s in _pauses():
            state = await self.inspect(container)
            if state is None or not state.running:
                return state
            if time.monotonic() + pause_s > deadline:
                raise TimeoutError
            await asyncio.sleep(pause_s)
        raise AssertionError("the pauses never end")

    async def log_tail(self, container: str, lines: int) -> str:
        raw = await self._call(lambda api: api.logs(container, tail=lines))
        return bytes(raw).decode("utf-8", "replace")

    async def commit(self, container: str, *, repository: str, tag: str, labels: Mapping[str, str]) -> str:
        """The image's id. The container's own command does not travel, its labels do: `labels` come on top."""
        changes = ['CMD ["/bin/sh"]', "USER 0:0", "WORKDIR /"]
        changes += [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
        made = await self._call(lambda api: api.commit(container, repository=repository, tag=tag, changes=changes))
        return str(made["Id"])

    async def remove_image(self, reference: str) -> None:
        """Gone already is fine."""
        await self._call(lambda api: _absent_as_none(api.remove_image, reference))

    async def read_archive(self, container: str, path: str, read: Callable[[BinaryIO], T], *, deadline: float) -> T:
        """`read(tar)` in a thread: of the folder `path` of a container, which need not run; "/" is all of it.

        Raises Misconfigured for no such path, StartFailed after `deadline` (time.monotonic()); what `read` raises. A caller that is cancelled
        waits for the end of `read`, whose next piece fails.
        """
        given_up = threading.Event()

        def reading(api: APIClient) -> Callable[[], T]:
            try:
                chunks = api.export(container) if path == "/" else api.get_archive(container, path)[0]
            except NotFound as error:
                raise Misconfigured(f"the image has nothing at {path}: correct the task's workspace") from error
            with closing(chunks):
                return _outcome(
                    partial(read, io.BufferedReader(_Chunks(chunks, deadline, given_up), ARCHIVE_BUFFER_BYTES))
                )

        call = asyncio.ensure_future(self._call(reading))
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:
            given_up.set()
            with suppress(Exception):  # nobody is there to hear how it ended
                await finish(call)
            raise
        return call.result()()

    async def create_volume(self, name: str, options: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """A volume of the local driver; the engine mounts it when a container starts."""
        await self._call(lambda api: api.create_volume(name, "local", dict(options), dict(labels)))

    async def volumes(self, labels: Mapping[str, str]) -> Sequence[str]:
        """Names of those that carry every one of `labels`."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        found = await self._call(lambda api: api.volumes(filters={"label": wanted}))
        return [str(entry["Name"]) for entry in found.get("Volumes") or []]

    async def remove_volume(self, name: str) -> None:
        """Gone already is fine."""
        await self._call(lambda api: _absent_as_none(api.remove_volume, name))

    async def namespace(self, container: str) -> Path | None:
        """Where this machine sees the network namespace of a running container; None when it runs no more."""
        found = await self._call(lambda api: _absent_as_none(api.inspect_container, container))
        key = str((found or {}).get("NetworkSettings", {}).get("SandboxKey") or "")
        return Path(key) if key else None

    async def has_network(self, name: str) -> bool:
        """Whether one is called exactly so; the engine would also take an id's beginning for a name."""
        return await self.network_driver(name) is not None

    async def network_driver(self, name: str) -> str | None:
        """Of the network that is called exactly so ("bridge", "host", "null", ...); None where there is none."""
        found = await self._call(lambda api: api.networks(names=[name]))
        return next((str(entry["Driver"]) for entry in found if entry["Name"] == name), None)

    async def create_network(self, name: str, labels: Mapping[str, str]) -> None:
        """A bridge whose members cannot see each other. Raises StartFailed."""
        options = {"com.docker.network.bridge.enable_icc": "false"}
        await self._call(
            lambda api: api.create_network(
                name, driver="bridge", options=options, labels=dict(labels), check_duplicate=True
            )
        )

    async def remove_network(self, name: str) -> None:
        """Gone already is fine. Raises StartFailed while a container is on it."""
        await self._call(lambda api: _absent_as_none(api.remove_network, name))

    async def import_image(
        self, tar: Path, *, repository: str, tag: str, labels: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        """A root file system becomes an image. Raises StartFailed."""
        changes = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
        changes += [f"ENV {key}={json.dumps(value)}" for key, value in environment.items()]
        await self._call(lambda api: api.import_image(str(tar), repository=repository, tag=tag, changes=changes))

    async def build(
        self,
        folder: Path,
        *,
        tag: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        progress: Callable[[str], None],
    ) -> None:
        """`docker build` of `folder` over the host's network. Raises StartFailed with the step that failed."""
        build = partial(
            _build, folder=folder, tag=tag, arguments=dict(arguments), labels=dict(labels), progress=progress
        )
        await self._call(build)

    async def _call(self, request: Callable[[APIClient], T]) -> T:
        loop = asyncio.get_running_loop()
        return await finish(loop.run_in_executor(self._threads, self._guarded, request))

    def _guarded(self, request: Callable[[APIClient], T]) -> T:
        try:
            _knock(self._url, self._timeout_s)
            return request(self._connected())
        except (ImageNotFound, NotFound) as error:
            raise Misconfigured(f"the container engine knows no such thing: {tidy(_words(error))}") from error
        except APIError as error:
            raise _refusal(error) from error
        except (DockerException, requests.exceptions.RequestException, OSError) as error:
            log.warning("container engine does not answer at %s: %s", self._url, error)
            self._forget_connection()
            raise EngineUnavailable(
                "the container engine does not answer: start it (systemctl start docker), "
                "or name its socket in DOCKER_HOST; `tiltyard doctor` says more"
            ) from error

    def _connected(self) -> APIClient:
        with self._connecting:
            if self._api is None:
                self._api = _connect(self._url, self._timeout_s)
            return self._api

    def _forget_connection(self) -> None:
        """The next request connects anew: the engine may come back as another version."""
        with self._connecting:
            api, self._api = self._api, None
        if api is not None:
            api.close()


def _knock(url: str, timeout_s: float) -> None:
    """Raises OSError where nobody listens: the SDK leaks a socket when it finds out by itself. Costs some ten microseconds."""
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(timeout_s)
        knock.connect(url.removeprefix("unix://"))


def _connect(url: str, timeout_s: float) -> APIClient:
    """A client that speaks the engine's own version of the API. Raises OSError, DockerException or of requests."""
    with closing(APIClient(base_url=url, version=ANY_VERSION, timeout=timeout_s)) as first:
        version = first.version(api_version=False)["ApiVersion"]
    return APIClient(base_url=url, version=version, timeout=timeout_s, max_pool_size=THREADS)


def _words(error: APIError) -> str:
    return str(error.explanation or error)


def _refusal(error: APIError) -> StartFailed | Misconfigured:
    """An answer of the engine that is no success: the setting's fault where it says so, else a start that failed."""
    words = _words(error)
    log.warning("container engine refused (%s): %s", error.status_code, words)
    if error.status_code == 400 and UNKNOWN_RUNTIME.search(words):
        return Misconfigured(f"the container engine lacks the runtime that is set: {tidy(words)}")
    return StartFailed(f"the container engine refused: {tidy(words)}")


def _outcome(read: Callable[[], T]) -> Callable[[], T]:
    """What `read` came to, to be returned or raised elsewhere: its failures, a full disk say, are none of the engine's. The engine's pass through."""
    try:
        result = read()
    except requests.exceptions.RequestException:
        raise
    except Exception as error:  # noqa: BLE001  raised again by whoever calls what is returned
        return partial(_raise, error)
    return lambda: result


def _raise(error: Exception) -> NoReturn:
    raise error


class _Chunks(io.RawIOBase):
    """A reply's pieces as a file."""

    def __init__(self, chunks: Iterator[bytes], deadline: float, given_up: threading.Event) -> None:
        self._chunks = chunks
        self._given_up = given_up
        self._deadline = deadline
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase. Raises StartFailed when time is up, or nobody waits any more."""
        if self._given_up.is_set():
            raise StartFailed("reading the image was given up")
        if time.monotonic() > self._deadline:
            raise StartFailed("reading the image took too long")
        while not self._left:
            try:
                self._left = memoryview(next(self._chunks))
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def _absent_as_none(request: Callable[[str], T], name: str) -> T | None:
    try:
        return request(name)
    except (ImageNotFound, NotFound):
        return None


def _removed(api: APIClient, container: str) -> bool:
    """One try; False when it is not gone yet: somebody else is at it (409), or the engine tripped over its own files (5xx)."""
    try:
        api.remove_container(container, force=True, v=True)
    except NotFound:
        return True
    except APIError as error:
        if error.status_code == CONFLICT or error.status_code >= SERVER_ERROR:
            log.info("container not removed yet: %s", _words(error))
            return False
        raise
    return True


def _killed(api: APIClient, container: str) -> None:
    try:
        api.kill(container)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != CONFLICT:  # it runs no more
            raise


def _pauses() -> Iterator[float]:
    """Between two looks: short at first, since most waits are short."""
    pause_s = 0.02
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _build(
    api: APIClient,
    *,
    folder: Path,
    tag: str,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    progress: Callable[[str], None],
) -> None:
    lines: Iterable[Mapping[str, Any]] = api.build(
        path=str(folder),
        tag=tag,
        buildargs=arguments,
        labels=labels,
        network_mode="host",
        rm=True,
        forcerm=True,
        decode=True,
    )
    tail: list[str] = []
    for line in lines:
        text = str(line.get("stream", "")).strip()
        if text:
            tail = [*tail[-20:], text]
            progress(text)
        if "error" in line:
            raise StartFailed(f"building {tag} failed: {line['error']}\n" + "\n".join(tail))
