from __future__ import annotations

import pytest

from sandboxrun.errors import ConfigError, FetchError, UsageError
from sandboxrun.fetch.resolve import ImportList, Source, is_mutable, kind_of, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def url_of(url: str, version: str) -> str:
    source = resolve(url, version, key="t:1:h")
    assert isinstance(source, Source)
    return source.url


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        *((version, "tag") for version in (
            "v1.0.0", "V1.2.3", "1.2.3", "2024.1.1", "1.2.3.4", "v1.0.0-rc.1", "1.0.0rc1", "1.0.0.post2.dev3", "1.0.0-alpha1", "1.0.0+build.5",
            "refs/tags/v1", "refs/tags/release-2026-01", "refs/tags/main", "refs/tags/feature/x",
        )),
        *((version, "commit") for version in (COMMIT, COMMIT.upper(), COMMIT + COMMIT[:24])),
    ],
)  # fmt: skip
def test_what_is_pinned(version: str, kind: str) -> None:
    assert (kind_of(version), is_mutable(version)) == (kind, False)


@pytest.mark.parametrize(
    "version",
    [
        "main", "master", "HEAD", "feature/v1.2.3", "refs/heads/main", "refs/heads/v1.2.3", "refs/pull/1/merge", "tags/v1", "refs/tag/v1",
        "v1", "1", "1.2", "v1.2", "V2", "2026", "20260101", "1.x", "1.2.x", "v1.2.x", "1.2.3.x", "1.2.3-x", "1.2.3-fixes", "v1.2.3-dev",
        "1.2.3-rc", "release-1.x", "release-2026-01", "release-1.2.3", "v1x", "x1.2.3", "vv1.2.3", "1.2.3/x", "1..2", "1.2.3+", "1.2.3\n",
        COMMIT[:12], COMMIT[:39], COMMIT + "0", "deadbeef", "a1b2c3d", "g" * 40, "\uff11.2.3",
    ],
)  # fmt: skip
def test_what_may_be_a_branch_is_never_pinned(version: str) -> None:
    assert is_mutable(version)


GITHUB = "https://raw.githubusercontent.com/owner/repo"
GITLAB = "https://gitlab.com/group/sub/repo/-/raw"
CODEBERG = "https://codeberg.org/owner/repo/raw"
GIST = "https://gist.githubusercontent.com/user/0a1b"
JSDELIVR = "https://cdn.jsdelivr.net"
SOURCEHUT = "https://git.sr.ht/~user/repo"


@pytest.mark.parametrize(
    ("url", "version", "expected"),
    [
        (f"{GITHUB}/main/a/w.py", "v1.0.0", f"{GITHUB}/refs/tags/v1.0.0/a/w.py"),
        (f"{GITHUB}/main/a/w.py", "v1", f"{GITHUB}/v1/a/w.py"),
        (f"{GITHUB}/main/a/w.py", "refs/tags/v1", f"{GITHUB}/refs/tags/v1/a/w.py"),
        (f"{GITHUB}/refs/tags/v1/a/w.py", "refs/heads/v1", f"{GITHUB}/refs/heads/v1/a/w.py"),
        (f"{GITHUB}/feature/x/a/w.py", "feature/x", f"{GITHUB}/feature/x/a/w.py"),
        (f"{GITHUB}/refs/heads/feature/x/w.py", "feature/x", f"{GITHUB}/feature/x/w.py"),
        (f"{GITHUB}/{{version}}/a/w.py", "v1.0.0", f"{GITHUB}/refs/tags/v1.0.0/a/w.py"),
        (f"{GITHUB}/{{version}}/w-{{version}}.py", "refs/tags/v1", f"{GITHUB}/refs/tags/v1/w-v1.py"),
        (f"{GITHUB}/{COMMIT}/w.py", "main", f"{GITHUB}/main/w.py"),
        (f"{GITHUB}/refs/heads/main/w.py", "v1.0.0", f"{GITHUB}/refs/tags/v1.0.0/w.py"),
        (f"{GITHUB}/refs/tags/v1/a/w.py", "feature/x", f"{GITHUB}/feature/x/a/w.py"),
        ("https://github.com/owner/repo/blob/main/a/w.py", "v1.0.0", f"{GITHUB}/refs/tags/v1.0.0/a/w.py"),
        ("https://github.com/owner/repo/raw/main/a/w.py", "main", f"{GITHUB}/main/a/w.py"),
        (f"{GITLAB}/main/w.py", "v1.0.0", f"{GITLAB}/v1.0.0/w.py?ref_type=tags"),
        (
            f"{GITLAB}/main/w.py?ref_type=heads&inline=false",
            "refs/tags/v1",
            f"{GITLAB}/v1/w.py?inline=false&ref_type=tags",
        ),
        (f"{GITLAB}/v1/w.py?ref_type=tags", "main", f"{GITLAB}/main/w.py"),
        (f"{GITLAB}/v1/w.py", "refs/heads/main", f"{GITLAB}/main/w.py?ref_type=heads"),
        (f"{GITLAB}/v1/w.py?ref_type=tags", COMMIT, f"{GITLAB}/{COMMIT}/w.py"),
        ("https://git.example.com/g/p/-/blob/main/a/w.py", "main", "https://git.example.com/g/p/-/raw/main/a/w.py"),
        ("https://gitlab.com/group/repo/-/blob/main/w.py", "v1", "https://gitlab.com/group/repo/-/raw/v1/w.py"),
        (f"{CODEBERG}/branch/main/w.py", "v1.0.0", f"{CODEBERG}/tag/v1.0.0/w.py"),
        (f"{CODEBERG}/tag/v1/w.py", "main", f"{CODEBERG}/branch/main/w.py"),
        (f"{CODEBERG}/branch/main/w.py", COMMIT, f"{CODEBERG}/commit/{COMMIT}/w.py"),
        (f"{CODEBERG}/branch/{{version}}/w.py", "refs/tags/v1", f"{CODEBERG}/tag/v1/w.py"),
        ("https://codeberg.org/owner/repo/src/branch/main/a/w.py", "v1", f"{CODEBERG}/branch/v1/a/w.py"),
        ("https://git.example.com/o/r/raw/branch/main/w.py", "1.2.3", "https://git.example.com/o/r/raw/tag/1.2.3/w.py"),
        (f"{GIST}/raw/{COMMIT}/w.py", "main", f"{GIST}/raw/w.py"),
        (f"{GIST}/raw/w.py", COMMIT, f"{GIST}/raw/{COMMIT}/w.py"),
        (f"{GIST}/raw/{{version}}/w.py", "master", f"{GIST}/raw/w.py"),
        (f"https://gist.github.com/user/0a1b/raw/{'a' * 40}/w.py", COMMIT, f"{GIST}/raw/{COMMIT}/w.py"),
        (f"{JSDELIVR}/gh/user/repo@1.0/a/w.py", "v1.2.3", f"{JSDELIVR}/gh/user/repo@v1.2.3/a/w.py"),
        (f"{JSDELIVR}/gh/user/repo/a/w.py", COMMIT, f"{JSDELIVR}/gh/user/repo@{COMMIT}/a/w.py"),
        (f"{JSDELIVR}/gh/user/repo@{{version}}/w.py", "main", f"{JSDELIVR}/gh/user/repo@main/w.py"),
        (f"{JSDELIVR}/npm/@scope/name@1/a/w.py", "refs/tags/1.2.3", f"{JSDELIVR}/npm/@scope/name@1.2.3/a/w.py"),
        (f"{JSDELIVR}/npm/name/a/w.py", "1.2.3", f"{JSDELIVR}/npm/name@1.2.3/a/w.py"),
        (f"{SOURCEHUT}/blob/main/a/w.py", "v1.2.3", f"{SOURCEHUT}/blob/v1.2.3/a/w.py"),
        (f"{SOURCEHUT}/tree/main/item/a/w.py", COMMIT, f"{SOURCEHUT}/blob/{COMMIT}/a/w.py"),
        ("https://h.example/{version}/w.py", "refs/tags/v1", "https://h.example/refs/tags/v1/w.py"),
        ("https://h.example/{version}/w.py", "v1.0.0", "https://h.example/v1.0.0/w.py"),
        ("https://h.example/w-{version}.py?r={version}", "v1", "https://h.example/w-v1.py?r=v1"),
        ("https://h.example/v1/w.py", "v1", "https://h.example/v1/w.py"),
    ],
)
def test_the_version_goes_into_the_url(url: str, version: str, expected: str) -> None:
    assert url_of(url, version) == expected


@pytest.mark.parametrize(
    ("url", "version", "text"),
    [
        (f"{GIST}/raw/w.py", "v1.2.3", "a gist has neither tags nor branches"),
        (f"{GIST}/raw/w.py", COMMIT[:12], "a gist has neither tags nor branches"),
        (f"{JSDELIVR}/gh/u/r@1.0.0/w.py", "refs/tags/v1", "cannot tell"),
        (f"{JSDELIVR}/gh/u/r@1.0.0/w.py", "refs/tags/release-2026-01", "cannot tell"),
        (f"{JSDELIVR}/gh/u/r@1.0.0/w.py", "feature/x", "cannot tell"),
    ],
)
def test_a_version_that_a_host_cannot_serve_exactly_is_an_error(url: str, version: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        resolve(url, version, key="t:1:h")
    assert f"field version of t:1:h is {version!r}" in str(error.value)
    assert error.value.hint[0].startswith("sandboxrun set t 1 version=")


@pytest.mark.parametrize(
    "url",
    [
        f"{GIST}", f"{GIST}/raw", f"{GIST}/raw/a/b.py", "https://gist.github.com/user/0a1b", "https://github.com/owner/repo",
        "https://github.com/owner/repo/tree/main/a", f"{GITHUB}/main", f"{JSDELIVR}/gh/user/repo@1", f"{JSDELIVR}/npm/name", f"{JSDELIVR}/combine/npm/a/w.py",
        f"{SOURCEHUT}", f"{SOURCEHUT}/log", "https://git.example.com/o/r/raw/main/w.py", "https://gitlab.com/g/p/raw/main/w.py",
        "https://h.example/xv1.2.3/w.py",
    ],
)  # fmt: skip
def test_the_version_is_not_put_into_a_url_of_another_form(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected \{version\} in it") as error:
        resolve(url, "v1.2.3", key="t:1:h")
    assert "{version}" in error.value.hint[0]


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


@pytest.mark.parametrize("path", ["x/../../../../../o/r/main/f.py", "x/%2e%2E/main/f.py", "./main/f.py", "v1.2.3/.."])
def test_a_path_that_leads_out_of_the_version_is_refused(path: str) -> None:
    for form in ("https://raw.githubusercontent.com/o/r/", "https://gitlab.com/o/r/-/raw/", "https://h/{version}/"):
        with pytest.raises(ConfigError, match=r"has \. or \.\. in its path"):
            resolve(form + path, "v1.2.3", key="t:1:h")


@pytest.mark.parametrize("url", [
    "https://raw.githubusercontent.com//o/r/main/f.py?x={version}", "https://cdn.jsdelivr.net/combine/gh/o/r@main/f.py?{version}",
    "https://gist.github.com/u/abc/raw//f.py?{version}", "https://git.sr.ht/~u/r/archive/f.py?x={version}",
])  # fmt: skip
def test_a_version_in_the_query_of_a_host_that_has_it_in_the_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="does not say where the version belongs"):
        resolve(url, "v1.2.3", key="t:1:h")


def test_a_dot_behind_the_host_makes_no_other_host() -> None:
    source = resolve("https://raw.githubusercontent.com./o/r/main/f.py?x={version}", "v1.2.3", key="t:1:h")
    assert source.url == "https://raw.githubusercontent.com./o/r/refs/tags/v1.2.3/f.py?x=v1.2.3"  # type: ignore[union-attr]
    release = "https://github.com/o/r/releases/download/{}/f.py"
    assert resolve(release.format("{version}"), "v1.2.3", key="t:1:h").url == release.format("v1.2.3")  # type: ignore[union-attr]
