"""Name -> where a backend's class lives. A row is imported only when it is asked for, so that extras stay extras."""

from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType

from orchestrator.errors import Misconfigured
from orchestrator.interfaces import SandboxBackend

BACKENDS = MappingProxyType(
    {
        "docker": "orchestrator.backends.docker.backend:DockerBackend",
        "fake": "orchestrator.backends.fake.backend:FakeBackend",
        "kubernetes": "orchestrator.backends.kubernetes.backend:KubernetesBackend",
        "local": "orchestrator.backends.local.backend:LocalBackend",
    }
)


def backend_class(name: str) -> Callable[..., SandboxBackend]:
    """The backend's class; its constructor's arguments are its own. Raises Misconfigured for an unknown name or a missing extra."""
    path = BACKENDS.get(name)
    if path is None:
        raise Misconfigured(f"unknown backend {name!r}; there are: {', '.join(sorted(BACKENDS))}")
    module, _, attribute = path.partition(":")
    try:
        found: Callable[..., SandboxBackend] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"orchestrator", "tool_gateway"}:
            raise
        raise Misconfigured(
            f"backend {name!r} needs the Python package {error.name!r}: pip install 'tiltyard[{name}]'"
        ) from error
    return found
