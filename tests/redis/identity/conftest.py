from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import servers
from logins import Probe, Server
from runner import Runner

from sandboxrun.redis import embedded


@pytest.fixture(scope="module", params=servers.NAMES)
def started(request: pytest.FixtureRequest) -> Iterator[Server]:
    with (
        embedded.server(program=servers.program(request.param)) as url,
        redis.Redis.from_url(url, decode_responses=True, socket_timeout=30) as client,
    ):
        yield Server(request.param, url, client)


@pytest.fixture
def server(started: Server) -> Server:
    started.r.flushall()
    return started


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Runner:
    home = tmp_path / "home"
    home.mkdir()
    return Runner(server.url, home)


@pytest.fixture(params=[{}, {"allowCall": "price"}], ids=["", "calls"])
def probe(request: pytest.FixtureRequest, server: Server, run: Runner, tmp_path: Path) -> Probe:
    """Of a worker that may call nobody, and of one that may: it can do nothing else that it could not."""
    return Probe(server, run, tmp_path, **request.param)
