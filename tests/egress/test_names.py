"""Allow-lists: what is taken, in which form, and what is refused with which words."""

import pytest

from orchestrator.egress.names import MAX_NAMES, check, network, permits
from orchestrator.models import Network


def test_names_are_brought_into_one_form() -> None:
    made = network(["PyPI.org", "*.Example.ORG", "pypi.org", "bücher.example"], (443, 80, 443))
    assert made == Network(allow=("*.example.org", "pypi.org", "xn--bcher-kva.example"), ports=(80, 443))
    check(made)
    check(Network())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("10.0.0.1", "looks like an address"),
        ("127.1", "looks like an address"),
        ("0x7f.0x1", "looks like an address"),
        ("2130706433", "looks like an address"),
        ("[::1]", "no host name"),
        ("::1", "without a port"),
        ("example.org:443", "without a port"),
        ("https://example.org", "no host name"),
        ("user@example.org", "no host name"),
        ("example.org/x", "no host name"),
        ("example.org\nhttp_access allow all", "no host name"),
        ("example.org allow", "no host name"),
        ("#.example.org", "no host name"),
        ("localhost", "the full name"),
        ("", "the full name"),
        ("*", "at the beginning only"),
        ("*.com", "at least two labels"),
        ("*.*.org", "at the beginning only"),
        ("a.*.org", "at the beginning only"),
        ("*a.example.org", "at the beginning only"),
        ("example.org.", "no host name"),
        (".example.org", "no host name"),
        ("a..org", "no host name"),
        ("-a.example.org", "no host name"),
        ("under_score.example.org", "no host name"),
        ("a" * 64 + ".example.org", "no host name"),
        (".".join(["a" * 60] * 5), "no host name"),
        ("ex\N{FULLWIDTH SOLIDUS}ample.org", "no host name|no international"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}example.org", "no international host name"),
    ],
)
def test_what_is_no_name_is_refused_with_words(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        network([name])


@pytest.mark.parametrize("ports", [(), (0,), (65_536,), tuple(range(1, 18))])
def test_ports_are_bounded(ports: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ports"):
        network(["example.org"], ports)


def test_a_list_is_bounded() -> None:
    with pytest.raises(ValueError, match="too many"):
        network([f"h{number}.example.org" for number in range(MAX_NAMES + 1)])


@pytest.mark.parametrize("allow", [("PyPI.org",), ("b.org", "a.org"), ("a.org", "a.org"), ("no such host",)])
def test_a_list_not_made_here_is_refused(allow: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"canonical|no host name"):
        check(Network(allow=allow))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("pypi.org", True),
        ("a.example.org", True),
        ("a.b.example.org", True),
        ("example.org", False),
        ("notexample.org", False),
        ("files.pypi.org", False),
        ("pypi.org.evil.net", False),
        ("org", False),
        ("", False),
    ],
)
def test_a_wildcard_stands_for_names_below_only(host: str, expected: bool) -> None:
    assert permits(network(["pypi.org", "*.example.org"]), host) is expected
