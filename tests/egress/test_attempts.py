"""What boxes tried, read from notes full of hostile text."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.egress.attempts import MAX_BYTES, MAX_FINDINGS, MAX_HOST, findings, read
from orchestrator.egress.names import network
from orchestrator.models import Finding, NetworkAttempt

LIST = network(["pypi.org", "*.example.org"])


def test_notes_become_attempts_refused_ones_first_the_last_count_of_each() -> None:
    requests = (
        "1\tallowed\t443\tpypi.org\n2\tallowed\t443\tpypi.org\n1\tname\t80\tevil.net\n3\taddress\t80\ta.example.org\n"
    )
    queries = "1\tasked\t53\tpypi.org\n1\tasked\t53\tevil.net\n1\tasked\t53\ta.b.example.org\n"
    assert [(each.host, each.port, each.allowed, each.count) for each in read(LIST, requests, queries)] == [
        ("a.example.org", 80, False, 3),
        ("evil.net", 53, False, 1),
        ("evil.net", 80, False, 1),
        ("pypi.org", 443, True, 2),
        ("a.b.example.org", 53, True, 1),
        ("pypi.org", 53, True, 1),
    ]


def test_refusals_have_their_reason_in_words() -> None:
    (attempt,) = read(LIST, "1\taddress\t80\tm.example.org\n")
    assert attempt.reason == "resolves to a private, local or metadata address"


def test_lines_that_no_proxy_writes_are_passed_over() -> None:
    text = "x\n1\tname\t80\n1\tNAME\t80\th\n-1\tname\t80\th\n1\tunheard\t80\th\n1\tname\t80\th\textra\n\n1\tname\t80\treal.net\n"
    assert [each.host for each in read(LIST, text)] == ["real.net"]


def test_strange_characters_and_lengths_are_reduced() -> None:
    (attempt,) = read(LIST, "1\tname\t80\ta\x1b]0;x\x07b.net\u202e" + "y" * 500 + "\n")
    assert attempt.host.startswith("a?]0?x?b.net?y")
    assert len(attempt.host) == MAX_HOST


def test_only_so_much_is_read() -> None:
    line = "1\tname\t80\th.net\n"
    assert read(LIST, "#" * MAX_BYTES + "\n" + line) == []


@given(st.text())
def test_any_text_is_read_without_a_fault(text: str) -> None:
    for attempt in read(LIST, text, f"1\tname\t80\t{text}\n"):
        assert attempt.host.isascii()
        assert attempt.host.isprintable()


def test_findings_say_what_was_refused_and_what_was_allowed() -> None:
    attempts = read(LIST, "4\tname\t443\tevil.net\n1\tallowed\t443\tpypi.org\n7\tmore\t0\t\n")
    assert findings(attempts) == (
        Finding(code="network_refused", detail="others (7 times): more hosts than are listed"),
        Finding(code="network_refused", detail="evil.net:443 (4 times): not in the allow-list"),
        Finding(code="network_allowed", detail="pypi.org:443"),
    )


def test_findings_are_bounded_and_refusals_are_not_displaced() -> None:
    many = [
        NetworkAttempt(host=f"h{number}.net", port=80, allowed=allowed, reason="", count=1)
        for allowed in (True, False)
        for number in range(MAX_FINDINGS + 7)
    ]
    told = findings(many)
    assert len(told) == 2 * (MAX_FINDINGS + 1)
    assert told[0].code == "network_refused"
    assert told[MAX_FINDINGS].detail == "and 7 more"
