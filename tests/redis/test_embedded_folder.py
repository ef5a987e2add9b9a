"""A Redis of one's own starts whatever the temporary folder is called."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from servers import Own

from sandboxrun.redis import embedded
from sandboxrun.redis.connection import Connection

NAMES = ["with space", "it's", 'a "quoted" one', "ünlike", "a#b", "100%", "back\\slash", "new\nline", "q?x=1&y"]


@pytest.fixture(params=NAMES)
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as above:  # short: a socket's address has 107 characters
        folder = Path(above) / request.param
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.mark.parametrize("unix_socket", [False, True])
def test_it_starts_in_a_folder_of_any_name(named: Path, unix_socket: bool) -> None:
    with embedded.server(unix_socket=unix_socket) as url:
        with redis.Redis.from_url(url) as r:
            assert r.ping()
            assert Path(r.config_get("dir")["dir"]).parent == named
        connection = Connection(url, name="test", protocol=2)
        connection.open()
        connection.close()
    assert list(named.iterdir()) == []


def test_the_tests_own_servers_do_too(named: Path) -> None:
    with Own() as server, redis.Redis.from_url(server.url) as r:
        assert r.ping()
