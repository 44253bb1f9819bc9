"""docs/settings.md against the settings themselves."""

import re
from pathlib import Path

import pytest

from orchestrator.errors import Misconfigured
from orchestrator.settings import Settings, load_settings

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"


def test_every_setting_is_documented_and_nothing_else() -> None:
    documented = set(re.findall(r"^\| `TILTYARD_([A-Z_]+)`", PAGE.read_text(), re.MULTILINE))
    assert documented == {name.upper() for name in Settings.model_fields}


def test_the_environment_is_read_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTYARD_DEPLOYMENT", "from-env")
    monkeypatch.setenv("TILTYARD_LISTEN_PORT", "9")
    assert load_settings(listen_port=None).deployment == "from-env"
    assert load_settings(listen_port=10).listen_port == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deployment", "Not A Name"),
        ("listen_port", 70_000),
        ("backend", "vm"),
        ("idle_ttl_s", 0),
        ("egress_dns", "127.0.0.53"),
        ("egress_dns", "x"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(Misconfigured, match=name):
        load_settings(**{name: value})


def test_resolvers_are_read_from_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTYARD_EGRESS_DNS", " 203.0.113.1,203.0.113.2 ")
    assert load_settings().egress_dns == ("203.0.113.1", "203.0.113.2")
    assert load_settings(egress_dns=("203.0.113.3",)).egress_dns == ("203.0.113.3",)
