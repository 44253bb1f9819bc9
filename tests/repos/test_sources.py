"""Repositories as tasks name them: what is accepted, what is said, what is kept secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Misconfigured
from orchestrator.repos.sources import parse_source


@pytest.mark.parametrize(
    ("repo", "fetch_from", "name"),
    [
        ("https://example.org/a/b.git", "https://example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://example.org:8443/a", "https://example.org:8443/a", "https://example.org:8443/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a", "http://[::1]:80/a"),
        ("ssh://git@example.org/a", "ssh://git@example.org/a", "ssh://example.org/a"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git", "example.org:a/b.git"),
        ("git://example.org/a", "git://example.org/a", "git://example.org/a"),
        ("/srv/repos/thing", "/srv/repos/thing", "thing"),
        ("/srv/repos/thing/.git", "/srv/repos/thing/.git", "thing"),
        ("file:///srv/my%20repo", "/srv/my repo", "my repo"),
    ],
)
def test_what_git_and_people_are_told(repo: str, fetch_from: str, name: str) -> None:
    source = parse_source(repo)
    assert (source.fetch_from, source.name) == (fetch_from, name)


@pytest.mark.parametrize(
    "repo",
    ["", " ", "relative/path", "ext::sh -c true", "ftp://example.org/a", "https://", "a\nb", "/a\0b", "http://[bad/a"],
)
def test_what_is_refused_says_what_is_supported(repo: str) -> None:
    with pytest.raises(Misconfigured):
        parse_source(repo)


def test_repositories_in_images_are_refused_by_name() -> None:
    with pytest.raises(Misconfigured, match=r"write workspace, not repo, .image:/testbed"):
        parse_source("image:/testbed")


def test_secrets_of_a_url_are_told_to_nobody_but_git() -> None:
    source = parse_source("https://user:s3cret%21@example.org/a.git?token=t0ken")
    header = source.secret_config["http.https://example.org/.extraHeader"]
    assert header.startswith("Authorization: Basic ")
    shown = f"{source!r} {source.name}"
    assert "s3cret" not in shown
    assert "t0ken" not in source.name
    assert "s3cret" not in source.fetch_from
    said = source.redact("fatal: https://user:s3cret%21@example.org/a.git?token=t0ken and s3cret! again")
    assert "s3cret" not in said
    assert "t0ken" not in said
    assert "example.org/a.git" in said


def test_two_accounts_do_not_share_a_mirror() -> None:
    keys = {parse_source(f"https://{user}example.org/a").key for user in ("", "one:x@", "two:x@")}
    assert len(keys) == 3


def test_one_folder_is_one_mirror() -> None:
    assert parse_source("/srv/../srv/a").key == parse_source("file:///srv/a").key == parse_source("/srv/a").key


@given(st.text(max_size=60))
def test_any_text_is_a_source_or_refused(repo: str) -> None:
    try:
        source = parse_source(repo)
    except Misconfigured:
        return
    assert not source.fetch_from.startswith("-")
