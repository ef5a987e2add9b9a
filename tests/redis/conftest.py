from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from proxy import Proxy
from raw_host import RawHost, raw_host
from runner import Runner
from servers import Own

from sandboxrun import client
from sandboxrun.redis import embedded


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with embedded.server() as url:
        yield url


@pytest.fixture
def r(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=30) as client:
        client.flushall()
        # Flushing leaves what earlier tests did to the server's users, and what these were refused.
        client.acl_deluser(*[user for user in client.acl_users() if user != "default"], "-")
        client.acl_log_reset()
        yield client


@pytest.fixture
def server() -> Iterator[Own]:
    """A server of the test's own, which it may kill."""
    with Own() as found:
        yield found


@pytest.fixture
def proxy(server: Own) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", server.port)) as found:
        yield found


@pytest.fixture
def c(redis_url: str) -> Iterator[client.Client]:
    with client.Client(redis_url) as found:
        yield found


@pytest.fixture
def host() -> Iterator[RawHost]:
    with raw_host() as found:
        yield found


@pytest.fixture
def run(redis_url: str, tmp_path: Path) -> Runner:
    home = tmp_path / "home"
    home.mkdir()
    return Runner(redis_url, home)


@pytest.fixture
def local(r: redis.Redis, tmp_path: Path):  # type: ignore[no-untyped-def]  # a function
    """Write a local worker and its hash; `local(code, field=value)`."""

    def write(code: str, key: str = "t:1:h", **fields: str) -> Path:
        folder = tmp_path / "worker"
        folder.mkdir(exist_ok=True)
        (folder / "worker.py").write_text(code)
        r.hset(key, mapping={"url": str(folder), "version": "local", **fields})
        return folder

    return write
