"""The parsers of URLs and versions, against input nobody would write."""

# ruff: noqa: PT017 - the other outcome, a value, is checked too

from __future__ import annotations

import re

import pytest
from fuzzing import FEW, TEXT, fuzz, one_line
from hypothesis import strategies as st

from sandboxrun.config import worker as config
from sandboxrun.config.permissions import canonical_host
from sandboxrun.errors import ConfigError, FetchError, UsageError
from sandboxrun.fetch import resolve
from sandboxrun.redis.address import parse_url

KEY = "demo-worker:1:h"

URLS = st.one_of(
    TEXT,
    TEXT.map("https://".__add__),
    TEXT.map("file://".__add__),
    st.builds(
        "{}://{}/{}".format,
        st.sampled_from(["https", "http", "HTTPS", "ftp"]),
        st.sampled_from(["github.com", "raw.githubusercontent.com", "gitlab.com", "codeberg.org", "127.0.0.1:1", "h", "u:p@h", "[::1]"]),
        st.lists(
            st.sampled_from(["a", "b", "main", "blob", "raw", "-", "branch", "refs", "heads", "{version}", "..", "", "w.py", "v1.2.3"]),
            max_size=8,
        ).map("/".join),
    ),
)  # fmt: skip
VERSIONS = st.one_of(st.sampled_from(["local", "main", "v1.2.3", "a" * 40, "feature/x"]), TEXT)


@fuzz(URLS, VERSIONS, examples=250)
def test_a_url_and_version_give_a_source_on_the_same_host_or_one_line(url: str, version: str) -> None:
    try:
        config.check_version(version, KEY)
        config._url(url, KEY)
    except ConfigError as error:
        one_line(error)
        return
    try:
        source = resolve.resolve(url, version, key=KEY)
    except (ConfigError, FetchError) as error:
        one_line(error)
        return
    if isinstance(source, resolve.LocalSource):
        assert version == "local"
        assert source.script.startswith("/")
        return
    before, after = resolve.urlsplit(url), resolve.urlsplit(source.url)
    moved = {"github.com": "raw.githubusercontent.com"}
    assert after.hostname in (before.hostname, moved.get(before.hostname or ""))
    assert (after.scheme, after.port) == (before.scheme, before.port)
    assert version in source.url
    assert "{version}" not in source.url
    assert source.mutable == resolve.is_mutable(source.version)
    # The version takes the place of a ref; it never moves the boundary to the host.
    assert after.netloc.count("/") == after.netloc.count("@") == 0
    try:
        resolve.ImportList.default().check(source.url)
    except FetchError as error:
        one_line(error)
    else:
        assert after.hostname in ("127.0.0.1", "::1", "localhost") or (
            after.scheme == "https" and (after.hostname or "").removesuffix(".") in resolve.DEFAULT_HOSTS
        )


@pytest.mark.parametrize("url", ["file://[", "file://]", "file://[x]/w.py"])
def test_a_malformed_file_url_is_a_config_error(url: str) -> None:
    try:
        resolve.resolve(url, "local", key=KEY)
    except ConfigError:
        return


@fuzz(TEXT, TEXT)
def test_import_lists_allow_the_hosts_they_name(text: str, url: str) -> None:
    try:
        allowed = resolve.ImportList.parse(text)
    except UsageError as error:
        one_line(error)
        return
    for candidate in (url, f"https://{url}", f"http://{url}", f"https://{text}/"):
        try:
            allowed.check(candidate)
        except FetchError as error:
            one_line(error)
            continue
        host = (resolve.urlsplit(candidate).hostname or "").removesuffix(".")
        assert host in ("127.0.0.1", "::1", "localhost") or any(
            host in (part.lower(), _idna(part)) for part in re.split(r"\s*,\s*|:[0-9]+|[][]", text.strip())
        )


def _idna(host: str) -> str:
    try:
        return canonical_host(host)
    except ValueError:
        return host


@fuzz(TEXT, examples=FEW)
def test_redis_urls_never_show_a_password(text: str) -> None:
    for url in (text, f"redis://user:pass{text}word@127.0.0.1:1/0", f"unix://{text}"):
        try:
            found = parse_url(url)
        except UsageError as error:
            one_line(error)
            assert "pass" not in str(error).replace("USER:PASSWORD", "").lower()
            continue
        assert "@" not in found.shown or not url.startswith("redis")
