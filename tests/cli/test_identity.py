"""What a deployment keeps on disk to be itself."""

from pathlib import Path

import pytest

from orchestrator.cli.identity import claim_backend
from orchestrator.cli.wiring import gateway
from orchestrator.errors import Misconfigured
from orchestrator.settings import load_settings
from tests.tasks.test_load import ROW, file

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("first", "then"), [("local", "docker"), ("docker", "local")])
def test_boxes_of_one_backend_are_not_taken_over_by_another(first: str, then: str, tmp_path: Path) -> None:
    """Each would find only folders, remove them, and leave the other's processes or containers for ever."""
    claim_backend(tmp_path, first)
    claim_backend(tmp_path, first)
    (tmp_path / "boxes" / "r-1").mkdir(parents=True)
    claim_backend(tmp_path, first)
    claim_backend(tmp_path, "fake")  # has none on this machine
    with pytest.raises(Misconfigured, match=rf"boxes of the {first} backend.*tiltyard sweep"):
        claim_backend(tmp_path, then)
    claim_backend(tmp_path, first)
    (tmp_path / "boxes" / "r-1").rmdir()
    claim_backend(tmp_path, then)
    (tmp_path / "boxes" / "r-2").mkdir()
    with pytest.raises(Misconfigured, match=f"boxes of the {then} backend"):
        claim_backend(tmp_path, first)


async def test_a_server_asks_before_it_touches_anything(tmp_path: Path) -> None:
    tasks = file(tmp_path, {**ROW, "image": "host"})
    settings = load_settings(state_dir=tmp_path, backend="local", insecure_loopback=True, tasks=tasks)
    claim_backend(settings.deployment_dir, "docker")
    (settings.deployment_dir / "boxes" / "r-1").mkdir(parents=True)
    (settings.deployment_dir / "local").mkdir()
    with pytest.raises(Misconfigured, match="boxes of the docker backend"):
        async with gateway(settings):
            pass
