from __future__ import annotations

import pytest

from sandboxrun.errors import ConfigError, FetchError, UsageError
from sandboxrun.fetch.resolve import ImportList, Source, is_mutable, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def url_of(url: str, version: str) -> str:
    source = resolve(url, version, key="t:1:h")
    assert isinstance(source, Source)
    return source.url


@pytest.mark.parametrize("version", ["v1.0.0", "1.2", "v2", "2024.1.1", "v1.0.0-rc.1", "1.0+build", COMMIT])
def test_pinned_versions(version: str) -> None:
    assert not is_mutable(version)


@pytest.mark.parametrize("version", ["main", "master", "release-1.x", "v1x", "feature/v1", COMMIT[:12], "deadbeef"])
def test_branches(version: str) -> None:
    assert is_mutable(version)


GITHUB = "https://raw.githubusercontent.com/owner/repo"
GITLAB = "https://gitlab.com/group/sub/repo/-/raw"
CODEBERG = "https://codeberg.org/owner/repo/raw"


@pytest.mark.parametrize(
    ("url", "version", "expected"),
    [
        (f"{GITHUB}/main/a/w.py", "v1.0.0", f"{GITHUB}/v1.0.0/a/w.py"),
        (f"{GITHUB}/{COMMIT}/w.py", "main", f"{GITHUB}/main/w.py"),
        (f"{GITHUB}/refs/heads/main/w.py", "v1.0.0", f"{GITHUB}/v1.0.0/w.py"),
        (f"{GITHUB}/refs/tags/v1/a/w.py", "feature/x", f"{GITHUB}/feature/x/a/w.py"),
        ("https://github.com/owner/repo/blob/main/a/w.py", "v1.0.0", f"{GITHUB}/v1.0.0/a/w.py"),
        ("https://github.com/owner/repo/raw/main/a/w.py", "v1.0.0", f"{GITHUB}/v1.0.0/a/w.py"),
        (f"{GITLAB}/main/w.py", "v1.0.0", f"{GITLAB}/v1.0.0/w.py"),
        ("https://gitlab.com/group/repo/-/blob/main/w.py", "v1", "https://gitlab.com/group/repo/-/raw/v1/w.py"),
        (f"{CODEBERG}/branch/main/w.py", "v1.0.0", f"{CODEBERG}/tag/v1.0.0/w.py"),
        (f"{CODEBERG}/tag/v1/w.py", "main", f"{CODEBERG}/branch/main/w.py"),
        (f"{CODEBERG}/branch/main/w.py", COMMIT, f"{CODEBERG}/commit/{COMMIT}/w.py"),
        ("https://h.example/{version}/w.py", "v1.0.0", "https://h.example/v1.0.0/w.py"),
        ("https://h.example/w-{version}.py?r={version}", "v1", "https://h.example/w-v1.py?r=v1"),
        ("https://h.example/v1/w.py", "v1", "https://h.example/v1/w.py"),
    ],
)
def test_the_version_goes_into_the_url(url: str, version: str, expected: str) -> None:
    assert url_of(url, version) == expected


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://h.example/w.py", "{version}"),
        ("https://{version}.example/w.py", "host"),
        ("https://user:pass@h.example/{version}/w.py", "netrc"),
        ("https://h.example/{version}/w.py#x", "fragment"),
        ("ftp://h.example/{version}", "expected https"),
        ("/folder", "expected https"),
        ("https:///x/{version}", "expected https"),
        ("https://h:port/{version}", "not a URL"),
        ("https://[::1/{version}", "not a URL"),
    ],
)
def test_odd_urls_are_errors_that_never_show_a_password(url: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(url, "v1", key="t:1:h")
    assert text in str(error.value)
    assert "field url of t:1:h" in str(error.value)
    assert "pass@" not in str(error.value)


def test_the_import_list() -> None:
    listed = ImportList.parse("example.com,other.example:8443,[2001:db8::1]:9443")
    for good in (
        "https://example.com/x",
        "https://EXAMPLE.com:443/x",
        "https://other.example:8443/x",
        "https://[2001:db8::1]:9443/x",
    ):
        listed.check(good)
    for bad in ("https://example.com:8443/x", "https://other.example/x", "http://example.com/x", "https://sub.example.com/x", "https://example.com.evil/x",
                "https://evil/https://example.com", "https://example.com@evil/x", "file:///x", "https://[2001:db8::2]:9443/x"):  # fmt: skip
        with pytest.raises(FetchError):
            listed.check(bad)
    listed.check("http://127.0.0.1:8000/x")
    listed.check("http://[::1]:8000/x")
    with pytest.raises(FetchError, match="this machine"):
        listed.check("http://127.0.0.1:8000/x", came_from="https://example.com/x")
    for bad in ("http://127.0.0.2/x", "http://localhost.evil/x", "http://0.0.0.0/x"):
        with pytest.raises(FetchError):
            listed.check(bad)


@pytest.mark.parametrize("text", ["a:0", "a:x", "https://a", "a/b", "127.1"])
def test_odd_import_lists_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="--allow-import"):
        ImportList.parse(text)
