"""The arrows between packages (docs/architecture.md) and the walls around libraries, read from the imports themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VALUES = {"orchestrator.models", "orchestrator.operations", "orchestrator.errors", "orchestrator.interfaces"}
BESIDE = {"orchestrator.settings", "orchestrator.telemetry", "orchestrator.failpoints"}

ARROWS: dict[str, set[str]] = {
    "orchestrator.models": set(),
    "orchestrator.operations": set(),
    "orchestrator.errors": set(),
    "orchestrator.interfaces": VALUES,
    "orchestrator.settings": VALUES,
    "orchestrator.telemetry": VALUES,
    "orchestrator.failpoints": VALUES,
    "orchestrator.grading": VALUES,
    "orchestrator.agent": VALUES,
    "orchestrator.repos": VALUES,
    "orchestrator.egress": VALUES,
    "orchestrator.store": VALUES | BESIDE,
    "orchestrator.tasks": VALUES | {"orchestrator.egress", "orchestrator.tools", "orchestrator.graders"},
    "orchestrator.tools": VALUES,
    "orchestrator.graders": VALUES,
    "orchestrator.backends": VALUES | BESIDE | {"orchestrator.egress", "orchestrator.agent", "orchestrator.repos"},
    "orchestrator.conformance": VALUES | {"orchestrator.agent"},
    "orchestrator.hosts": VALUES
    | BESIDE
    | {"orchestrator.egress", "orchestrator.agent", "orchestrator.grading", "orchestrator.tools"},
    "orchestrator.clusters": VALUES | {"orchestrator.hosts"},
    "tool_gateway": VALUES | BESIDE | {"orchestrator.store"},
}
"""Package -> what of ours it may import besides itself. `orchestrator.cli` wires and may import everything."""

WALLS: dict[str, tuple[str, ...]] = {
    "docker": ("orchestrator.backends.docker",),
    "pyseccomp": ("orchestrator.backends.local",),
    "ray": ("orchestrator.clusters.ray",),
    "kubernetes": ("orchestrator.backends.kubernetes",),
    "fastapi": ("tool_gateway",),
    "starlette": ("tool_gateway",),
    "uvicorn": ("tool_gateway",),
    "sqlalchemy": ("orchestrator.store",),
    "alembic": ("orchestrator.store",),
    "git": ("orchestrator.repos", "orchestrator.cli.demo.repository"),
    "typer": ("orchestrator.cli",),
    "rich": ("orchestrator.cli",),
    "prometheus_client": ("orchestrator.telemetry", "tool_gateway"),
    "pypi_simple": ("orchestrator.cli.demo.releases",),
}
"""Library -> the only places that import it."""

SHIPPED = ROOT / "orchestrator/graders/tests/runner"
"""Put into grading boxes as a package of its own, under another name: it imports itself relatively, and nothing else of ours."""


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("orchestrator", "tool_gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == (1 if path.parent == SHIPPED and not node.module else 0), f"{path}: relative import"
            yield node.module or ""


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def owner(module: str) -> str | None:
    """The row of ARROWS that a module belongs to."""
    return next((name for name in ARROWS if inside(module, name)), None)


def violations(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None."""
    library = imported.split(".")[0]
    if library in WALLS and not any(inside(module, place) for place in WALLS[library]):
        return f"{module} imports {library}, which stands behind {WALLS[library]}"
    ours = inside(imported, "orchestrator") or inside(imported, "tool_gateway")
    home = owner(module)
    if not ours or inside(module, "orchestrator.cli") or imported == "orchestrator":
        return None
    if home is None:
        return f"{module} has no row in ARROWS"
    if inside(imported, home) or any(inside(imported, allowed) for allowed in ARROWS[home]):
        return None
    return f"{module} imports {imported}, which {home} may not"


def test_every_import_follows_the_arrows_and_stays_within_the_walls() -> None:
    found = [v for module, path in modules() for name in imports(path) if (v := violations(module, name))]
    assert found == []


def test_what_is_shipped_into_boxes_imports_nothing_of_ours() -> None:
    found = {name.split(".")[0] for path in SHIPPED.glob("*.py") for name in imports(path)}
    assert "pytest" in found
    assert not found & {"orchestrator", "tool_gateway", "pydantic"}


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("orchestrator.hosts.host", "docker.errors"),
        ("orchestrator.hosts.host", "tool_gateway.app"),
        ("orchestrator.tools.shell", "orchestrator.store.sql"),
        ("tool_gateway.app", "orchestrator.hosts.host"),
        ("orchestrator.models", "orchestrator.errors"),
        ("orchestrator.unheard_of", "orchestrator.models"),
    ],
)
def test_a_forbidden_import_is_named(module: str, imported: str) -> None:
    assert violations(module, imported)


def test_the_table_names_only_packages_that_exist() -> None:
    for name in ARROWS:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_no_machine_path_or_registry_host_is_committed() -> None:
    for path in [*ROOT.glob("*.lock"), ROOT / "pyproject.toml"]:
        assert "://" not in path.read_text(), path
