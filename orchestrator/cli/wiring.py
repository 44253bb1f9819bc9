"""Where the parts are put together: settings in, a served gateway out. Nothing else imports across the packages."""

import asyncio
import functools
import hashlib
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from orchestrator.backends.registry import backend_class
from orchestrator.cli.contradictions import check_cluster, check_images, check_settings
from orchestrator.cli.housekeeping import kept_tidy
from orchestrator.cli.identity import claim_backend, handle_secret, host_lock
from orchestrator.cli.networks import check_networks
from orchestrator.clusters.local import LocalCluster
from orchestrator.errors import Draining, Misconfigured
from orchestrator.graders.registry import grader
from orchestrator.hosts.disk import check_room, promises_mib
from orchestrator.hosts.host import SandboxHost
from orchestrator.hosts.settings import HostSettings
from orchestrator.interfaces import Host, SandboxBackend
from orchestrator.models import HostId, Job, JobId, Task, TaskId
from orchestrator.repos.folders import disk_usage_bytes
from orchestrator.repos.templates import TemplateCache
from orchestrator.repos.workspace import Workspaces, make_workspaces
from orchestrator.settings import Settings
from orchestrator.store.blobs import DiskBlobs
from orchestrator.store.sql import SqlStore
from orchestrator.tasks.jobs import load_jobs
from orchestrator.tasks.load import load_tasks
from orchestrator.tools.registry import schemas, tool
from tool_gateway.app import create_app
from tool_gateway.auth import Auth, load_tokens
from tool_gateway.deps import GatewayDeps
from tool_gateway.serving import App

if TYPE_CHECKING:
    from orchestrator.backends.docker.settings import DockerSettings
    from orchestrator.backends.kubernetes.settings import KubernetesSettings
    from orchestrator.backends.local.settings import LocalSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What makes boxes, and what they are made over."""

    backend: SandboxBackend
    templates: TemplateCache
    tidy: Callable[[], Awaitable[object]]
    """Removes what a killed server's set-up left; only under the host's lock."""
    memory_limit_mib: int
    notices: tuple[str, ...] = ()
    """What an operator must read at every start."""
    on_disk: bool = True
    """Whether boxes take space of the state folder's file system."""


@asynccontextmanager
async def engine(settings: Settings, *, starts_boxes: bool = True) -> AsyncIterator[Engine]:
    """`starts_boxes=False`: boxes are only looked at and removed, so that a runtime which is gone or refused hinders nobody.

    Raises Misconfigured, EngineUnavailable.
    """
    async with AsyncExitStack() as stack:
        if settings.backend == "fake":
            yield await _fake(settings)
        elif settings.backend == "kubernetes":
            yield await _kubernetes(settings, stack)
        elif settings.backend == "local":
            yield await _local(settings, stack, starts_boxes)
        else:
            yield await _docker(settings, stack, starts_boxes)


class AnyImage:
    """For the fake backend: every image name exists, and is its own id."""

    async def image_id(self, reference: str) -> str:
        return "sha256:" + hashlib.sha256(reference.encode()).hexdigest()

    async def read_folder(self, image: str, path: str, read: Callable[[BinaryIO], T], *, timeout_s: float) -> T:
        raise Misconfigured(f"images of the fake backend hold no files, so none at {path}: use the docker backend")


async def _fake(settings: Settings) -> Engine:
    from orchestrator.repos.fakes import FakeSetup

    backend = backend_class("fake")()
    templates = TemplateCache(settings.deployment_dir / "cache", setup=FakeSetup(), images=AnyImage())
    capacity = await backend.capacity()
    return Engine(
        backend=backend, templates=templates, tidy=_nothing, memory_limit_mib=capacity.memory_mib, on_disk=False
    )


async def _nothing() -> None:
    """The fake backend's set-up leaves nothing."""


async def _docker(settings: Settings, stack: AsyncExitStack, starts_boxes: bool) -> Engine:
    from orchestrator.backends.docker.backend import DockerBackend
    from orchestrator.backends.docker.images import DockerImages

    docker = docker_settings(settings)
    workspaces: Workspaces = make_workspaces(settings.state_dir, settings.deployment)
    backend = DockerBackend(docker, workspaces)
    if not starts_boxes:
        stack.push_async_callback(backend.aclose)
    else:
        await stack.enter_async_context(backend)
    images = await stack.enter_async_context(DockerImages(docker))
    templates = TemplateCache(settings.deployment_dir / "cache", setup=images, images=images)
    capacity = await backend.capacity()

    async def tidy() -> None:
        await images.sweep()
        await backend.tidy()

    return Engine(
        backend=backend,
        templates=templates,
        tidy=tidy,
        memory_limit_mib=capacity.memory_mib,
        notices=backend.notices,
    )


async def _kubernetes(settings: Settings, stack: AsyncExitStack) -> Engine:
    from orchestrator.backends.kubernetes.backend import KubernetesBackend
    from orchestrator.backends.kubernetes.images import ClusterImages

    backend = await stack.enter_async_context(KubernetesBackend(kubernetes_settings(settings)))
    images = ClusterImages()
    templates = TemplateCache(settings.deployment_dir / "cache", setup=images, images=images)
    capacity = await backend.capacity()
    return Engine(
        backend=backend,
        templates=templates,
        tidy=_nothing,
        memory_limit_mib=capacity.memory_mib,
        on_disk=False,
    )


async def _local(settings: Settings, stack: AsyncExitStack, starts_boxes: bool) -> Engine:
    from orchestrator.backends.local.backend import LocalBackend
    from orchestrator.backends.local.images import LocalImages

    local = local_settings(settings)
    backend = LocalBackend(local, make_workspaces(settings.state_dir, settings.deployment))
    if starts_boxes:
        await stack.enter_async_context(backend)
    images = LocalImages(local)
    templates = TemplateCache(settings.deployment_dir / "cache", setup=images, images=images)
    capacity = await backend.capacity()
    return Engine(
        backend=backend,
        templates=templates,
        tidy=images.sweep,
        memory_limit_mib=capacity.memory_mib,
        notices=backend.notices,
    )


def show(notices: Sequence[str]) -> None:
    """So that it is read: on standard error, beside the log's own lines."""
    for notice in notices:
        print(f"tiltyard: WARNING: {notice}", file=sys.stderr, flush=True)


def local_settings(settings: Settings) -> "LocalSettings":
    from orchestrator.backends.local.settings import LocalSettings

    return LocalSettings(
        deployment=settings.deployment,
        state_dir=settings.deployment_dir,
        any_image=settings.local_any_image,
        paths=tuple(map(Path, filter(None, settings.local_paths.split(":")))),
        start_slots=settings.start_slots,
        memory_limit_mib=settings.memory_limit_mib,
        max_boxes=settings.max_boxes,
    )


def kubernetes_settings(settings: Settings) -> "KubernetesSettings":
    from orchestrator.backends.kubernetes.settings import KubernetesSettings

    return KubernetesSettings(
        deployment=settings.deployment,
        host_id=settings.host_id,
        state_dir=settings.deployment_dir,
        context=settings.kube_context,
        namespace=settings.kube_namespace,
        agent_image=settings.kube_agent_image,
        runtime_class=settings.kube_runtime_class,
        security=settings.kube_security,
        seccomp_profile=settings.kube_seccomp_profile,
        port_forward=settings.kube_port_forward,
        task_images=settings.kube_task_images,
        insecure_registries=frozenset(settings.kube_insecure_registries),
        warm_boxes=settings.kube_warm_boxes,
        start_s=settings.kube_start_s,
        start_slots=max(settings.start_slots, 8),
        max_boxes=settings.max_boxes,
        memory_limit_mib=settings.memory_limit_mib,
    )


def docker_settings(settings: Settings) -> "DockerSettings":
    from orchestrator.backends.docker.settings import DockerSettings

    return DockerSettings(
        deployment=settings.deployment,
        host_id=settings.host_id,
        state_dir=settings.deployment_dir,
        runtime=settings.runtime,
        accept_old_runc=settings.accept_old_runc,
        start_slots=settings.start_slots,
        memory_limit_mib=settings.memory_limit_mib,
        max_boxes=settings.max_boxes,
        egress_network=settings.egress_network,
        egress_dns=settings.egress_dns,
    )


def host_settings(settings: Settings, made: Engine) -> HostSettings:
    """Blocks on the disk. Raises Misconfigured where it has too little room to start anything."""
    disk_limit_mib = _disk_limit_mib(settings) if made.on_disk else None
    return HostSettings(
        memory_limit_mib=made.memory_limit_mib,
        disk_limit_mib=disk_limit_mib,
        disk_reserve_mib=settings.disk_reserve_mib,
        max_boxes=settings.max_boxes,
        start_slots=settings.start_slots,
        idle_ttl_s=settings.idle_ttl_s,
        call_deadline_s=settings.call_deadline_s,
        grade_deadline_s=settings.call_deadline_s,
        grader_reserve=settings.grader_reserve,
    )


def _disk_limit_mib(settings: Settings) -> int:
    """What boxes of an earlier process hold counts as free: it comes back."""
    boxes = settings.deployment_dir / "boxes"
    free_mib = free_disk_mib(settings.state_dir)
    check_room(free_mib, settings.disk_reserve_mib, boxes_left=boxes.is_dir() and any(boxes.iterdir()))
    held_mib = disk_usage_bytes(boxes) // 2**20
    return promises_mib(free_mib + held_mib, settings.disk_reserve_mib, settings.disk_overcommit)


def free_disk_mib(folder: Path) -> int:
    """What may still be written below `folder`, or below its next parent that exists. Raises OSError."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return shutil.disk_usage(existing).free // 2**20


def authentication(settings: Settings) -> Auth:
    """Tokens, or the open loopback mode that must be asked for. Raises Misconfigured."""
    if settings.tokens is not None:
        return load_tokens(settings.tokens)
    if not settings.insecure_loopback:
        raise Misconfigured(
            "no tokens: make a token file with `tiltyard token new` and pass --tokens FILE, "
            "or pass --insecure-loopback to serve processes of this machine without any"
        )
    if settings.listen_host not in ("127.0.0.1", "::1", "localhost"):
        raise Misconfigured(f"--insecure-loopback serves loopback only, not {settings.listen_host}")
    return Auth.open_loopback()


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[App]:
    """Everything a server is, started in order and ended in reverse. Raises Misconfigured, EngineUnavailable, StoreError."""
    auth = authentication(settings)
    check_settings(settings)
    jobs = load_jobs(settings.tasks, settings.jobs, load_tasks)
    check_images(jobs, settings)
    check_cluster(jobs, settings)
    async with AsyncExitStack() as stack:
        stack.enter_context(host_lock(settings.deployment_dir, settings.host_id))
        await asyncio.to_thread(claim_backend, settings.deployment_dir, settings.backend)
        store = await stack.enter_async_context(SqlStore.open(settings.resolved_store_url()))
        made = await stack.enter_async_context(engine(settings))
        show(made.notices)
        await check_networks(jobs, made.backend)
        await made.tidy()
        await stack.enter_async_context(kept_tidy(settings, made.templates))
        host = await stack.enter_async_context(
            SandboxHost(
                host_id=HostId(settings.host_id),
                settings=await asyncio.to_thread(host_settings, settings, made),
                backend=made.backend,
                store=store,
                blobs=DiskBlobs(settings.deployment_dir / "blobs"),
                templates=made.templates,
                task_of=functools.partial(find_task, jobs),
                share_of=lambda job: jobs[job].share if job in jobs else 1.0,
                tools=tool,
                graders=grader,
                free_disk=functools.partial(free_disk_mib, settings.state_dir) if made.on_disk else None,
            )
        )
        cluster = LocalCluster(host)
        stack.push_async_callback(cluster.aclose)
        yield create_app(
            GatewayDeps(
                cluster=cluster,
                store=store,
                jobs=jobs,
                auth=auth,
                handle_secret=handle_secret(settings.deployment_dir),
                schemas=schemas,
                ready=functools.partial(ready, store, host),
                call_timeout_s=settings.call_deadline_s,
                grade_timeout_s=settings.call_deadline_s,
            )
        )


async def ready(store: SqlStore, host: Host) -> None:
    """Raises StoreError, Draining: requests should go elsewhere."""
    await store.check()
    if (await host.load()).draining:
        raise Draining("this host is stopping")


def find_task(jobs: Mapping[JobId, Job], job: JobId, task: TaskId) -> Task | None:
    return jobs[job].tasks.get(task) if job in jobs else None
