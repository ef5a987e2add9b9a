from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from logins import Probe, Server, started
from runner import Runner


@pytest.fixture(scope="module", params=servers.NAMES)
def one(request: pytest.FixtureRequest) -> Iterator[Server]:
    with started(request.param) as found:
        yield found


@pytest.fixture
def server(one: Server) -> Server:
    one.r.flushall()
    return one


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Runner:
    home = tmp_path / "home"
    home.mkdir()
    return Runner(server.url, home)


@pytest.fixture(params=[{}, {"allowCall": "price"}], ids=["", "calls"])
def probe(request: pytest.FixtureRequest, server: Server, run: Runner, tmp_path: Path) -> Probe:
    """Of a worker that may call nobody, and of one that may: it can do nothing else that it could not."""
    return Probe(server, run, tmp_path, **request.param)
