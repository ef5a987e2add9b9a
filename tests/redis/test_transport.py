"""How Redis is reached: TCP, a Unix socket, TLS; either protocol; a login with a user's name. Each by all three of ours, the
supervisor, the worker in its sandbox, and the client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import certificates
import pytest
import redis
import servers
from runner import Runner

from sandboxrun import client
from sandboxrun.errors import ConnectionLost, StoreError
from sandboxrun.redis import embedded
from sandboxrun.redis.connection import Connection

# It says by which connections it works: the request loop's own, and that of redis-py.
CODE = """
import os
from sandboxrun import worker

r = worker.connect()

@worker.handler
def handle(request):
    return {"text": request.data["text"].upper(), "redis": r.xlen("t:req:x") > 0}

worker.run()
"""
ASYNC = CODE.replace("def handle", "async def handle")


@dataclass(frozen=True)
class Server:
    url: str  # of the operator, who is called "chief"; without a query
    query: str
    r: redis.Redis

    def query_with(self, *parts: str) -> str:
        return "?" + "&".join(part for part in (self.query, *parts) if part)


@contextlib.contextmanager
def _unix() -> Iterator[tuple[str, str]]:
    with embedded.server(unix_socket=True) as url:
        yield url, ""


@contextlib.contextmanager
def _tcp() -> Iterator[tuple[str, str]]:
    with embedded.server() as url:
        yield url, ""


@contextlib.contextmanager
def _tls() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder, tls_server(Path(folder)) as (url, made):
        yield url, f"ssl_ca_certs={made.authority}"


@contextlib.contextmanager
def tls_server(folder: Path, names: str = "IP:127.0.0.1") -> Iterator[tuple[str, certificates.Certificates]]:
    """A redis-server that takes nothing but TLS; its URL, and the certificates."""
    made = certificates.make(folder, names)
    settings = (
        "tls-auth-clients no",
        f"tls-cert-file {embedded.quoted(str(made.certificate))}",
        f"tls-key-file {embedded.quoted(str(made.key))}",
        f"tls-ca-cert-file {embedded.quoted(str(made.authority))}",
    )
    # Debian's has TLS, the one that comes with the extra has not.
    with servers.Own(*settings, program=servers.program("redis-7"), tls=True) as server:
        yield server.url, made


@pytest.fixture(scope="module", params=[_tcp, _unix, _tls], ids=["tcp", "unix", "tls"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as (url, query):
        connection = redis.Redis.from_url(f"{url}?{query}", decode_responses=True, socket_timeout=30)
        with connection as r:
            r.acl_setuser(
                "chief", enabled=True, passwords=["+p@ss:/word"], keys=["*"], channels=["*"], categories=["+@all"]
            )
            scheme, _, rest = url.partition("://")
            yield Server(f"{scheme}://chief:p%40ss%3A%2Fword@{rest.rpartition('@')[2]}", query, r)


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("code", [CODE, ASYNC], ids=["plain", "async"])
def test_a_worker_its_supervisor_and_its_callers_reach_redis(
    server: Server, run: Runner, tmp_path: Path, protocol: str, code: str
) -> None:
    (tmp_path / "worker.py").write_text(code)
    server.r.delete("t:req:x", "t:res:x")
    server.r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
    url = run.env["REDIS_URL"] = server.url + server.query_with(f"protocol={protocol}")

    async def by_asyncio() -> list[str]:
        async with client.AsyncClient(url) as c:
            calls = [c.call("t", {"text": f"a{n}"}, timeout=20) for n in range(20)]
            return [reply["text"] for reply in await asyncio.gather(*calls)]

    with run.start("t", "1", "--quiet") as process:
        assert client.call("t", {"text": "hi"}, timeout=20, url=url).items() >= {"text": "HI", "redis": True}.items()
        assert asyncio.run(by_asyncio()) == [f"A{n}" for n in range(20)]
        with client.Client(url) as c:
            found = [outcome for _, outcome, _ in c.call_many("t", [{"text": "b"}] * 300, timeout=20)]
        assert {reply["text"] for reply in found if isinstance(reply, dict)} == {"B"}
        done = run("call", "t", "text=c", "--trace")
        assert (done.code, json.loads(done.out)["text"]) == (0, "C"), done.err
        assert "tTrace" in done.err
        info = json.loads(run("info", "t", "--json").out)
        assert (info["responses"], info["group"]["pending"], info["consumers"][0]["name"]) == (322, 0, "1")
        assert json.loads(run("stream", "t", "responses", "-n", "1", "--json").out)[0]["code"] == "200"
        users = {entry["user"] for entry in server.r.client_list() if entry["name"].startswith("worker")}
        assert len(users) == 1 and users.pop().startswith("sandboxrun:t:1:")
        server.r.hdel("t:1:h", "pid")
        _, err = process.communicate(timeout=20)
        assert process.returncode in (0, 128 + signal.SIGTERM)  # by itself, or as sandboxrun saw it first
    expected = ("field pid of t:1:h was removed", "degraded: without redis-password")
    assert [line for line in err.decode().splitlines() if not any(text in line for text in expected)] == []
    assert server.r.hgetall("t:1:h") == {"url": str(tmp_path), "version": "local"}


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_connection_that_is_cut_is_made_again(server: Server, run: Runner, tmp_path: Path, kind: str) -> None:
    (tmp_path / "worker.py").write_text(CODE if kind == "plain" else ASYNC)
    server.r.delete("t:req:x", "t:res:x")
    server.r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
    url = run.env["REDIS_URL"] = server.url + server.query_with()
    with run.start("t", "1"), client.Client(url) as c:
        for turn in range(3):
            assert c.call("t", {"text": f"x{turn}"}, timeout=20)["text"] == f"X{turn}"
            server.r.client_kill_filter(skipme=True, _type="normal")


def test_a_certificate_of_another_authority_or_name_is_refused_with_one_line(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(CODE)
    with (
        tempfile.TemporaryDirectory() as folder,
        tls_server(Path(folder)) as (url, made),
        redis.Redis.from_url(f"{url}?ssl_ca_certs={made.authority}", decode_responses=True) as r,
    ):
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
        r.config_resetstat()
        for wrong, reason in (
            (f"{url}?ssl_ca_certs={made.stranger}", "certificate in certificate chain"),
            (url, "certificate in certificate chain"),  # the system's authorities do not know ours
            (f"{url.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={made.authority}", "Hostname mismatch"),
        ):
            for done in (run("t", "1", "--redis", wrong), run("call", "t", "text=x", "--redis", wrong)):
                assert (done.code, done.out) == (75, ""), done
                assert len(done.err.partition("\nhint: ")[0].splitlines()) == 1
                assert "has a certificate that is not to be trusted" in done.err
                assert reason in done.err
            with pytest.raises(StoreError, match="not to be trusted"):
                client.call("t", {"text": "x"}, url=wrong)
            with pytest.raises(StoreError, match="not to be trusted"):
                asyncio.run(_enter(wrong))
            # The worker itself, started without the supervisor, which would not come as far.
            by_itself = subprocess.run(
                [sys.executable, "worker.py", "t:1:h"], cwd=tmp_path, capture_output=True, text=True, timeout=30,
                env={"REDIS_URL": wrong, "PATH": os.environ["PATH"]},
            )  # fmt: skip
            assert (by_itself.returncode, by_itself.stderr.count("\n"), by_itself.stderr.count("\nhint: ")) == (
                75,
                2,
                1,
            )
            assert "not to be trusted" in by_itself.stderr
        # Nothing arrived: neither a login nor a command, but for this connection's own.
        assert set(r.info("commandstats")) <= {"cmdstat_config|resetstat", "cmdstat_info"}
        # Who asks for no check gets none; a file that is not there is named.
        assert run("t", "1", "--redis", f"{url}?ssl_cert_reqs=none", "--limit-time=1").code != 75
        done = run("t", "1", "--redis", f"{url}?ssl_ca_certs={tmp_path}/none.crt")
        assert (done.code, done.err.count("error: "), done.err.count("\n")) == (64, 1, 2)
        assert f"{tmp_path}/none.crt" in done.err


async def _enter(url: str) -> None:
    async with client.AsyncClient(url):
        pass


def test_the_file_of_the_authority_is_no_workers_to_change(run: Runner, tmp_path: Path) -> None:
    """The worker has to read it, and could otherwise be given its folder for writing."""
    worker = tmp_path / "worker"
    worker.mkdir()
    with (
        tempfile.TemporaryDirectory() as folder,
        tls_server(Path(folder)) as (url, made),
        redis.Redis.from_url(f"{url}?ssl_ca_certs={made.authority}") as r,
    ):
        (worker / "worker.py").write_text(f"print('BEGIN CERTIFICATE' in open('{made.authority}').read())")
        run.env["REDIS_URL"] = f"{url}?ssl_ca_certs={made.authority}"
        r.hset("t:1:h", mapping={"url": str(worker), "version": "local"})
        assert run("t", "1").out == "True\n"
        r.hset("t:1:h", "allowWrite", folder)
        done = run("t", "1", "--yes")
        assert (done.code, done.out) == (78, "")
        assert str(made.authority) in done.err


def test_a_closed_connection_is_noticed_before_anything_is_sent(server: Server) -> None:
    """So that a call is not answered with "unknown" that was never sent."""
    connection = Connection(server.url + server.query_with())
    connection.open()
    connection.check()
    server.r.client_kill_filter(skipme=True, _type="normal")
    _until_lost(connection.check)


def _until_lost(check: Callable[[], None]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            check()
        except ConnectionLost:
            return
    raise AssertionError("the loss was not noticed")
