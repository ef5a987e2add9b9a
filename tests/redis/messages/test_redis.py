"""The hints of sandboxrun/redis: each is made to appear, pasted, and then the command that failed works."""

from __future__ import annotations

import http.server
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import certificates
import pytest
import redis
import servers
from arena import wait_for
from hints import hint_of, is_of, paste, templates
from raw_host import RawHost
from runner import ALLOW_ALL, Done, Runner

from sandboxrun.redis import embedded

RAN = "print('ran')\n"


class Newcomer(NamedTuple):
    """With a worker t:1:h that would run."""

    r: redis.Redis
    url: str
    run: Runner
    host: RawHost
    folder: Path
    template: str

    def fails(self, *args: str, code: int, said: str) -> str:
        """The hint of a command that fails."""
        return self.hint(self.run(*(args or ("t", "1"))), code, said)

    def hint(self, done: Done, code: int, said: str) -> str:
        assert (done.code, done.out) == (code, ""), done
        assert said in done.err.splitlines()[0], done.err
        hint = hint_of(done.err)
        assert is_of(self.template, hint), hint
        return hint

    def works_after(self, hint: str, *args: str, **placeholders: str) -> None:
        """The command in the shell in which the hint was pasted."""
        command = " ".join(args or ("sandboxrun", "t", "1"))
        done = paste(f"{hint}\n{command}", self.run.env, self.run.home, **placeholders)
        assert (done.returncode, "error: " in done.stderr) == (0, False), done

    @property
    def login(self) -> dict[str, str]:
        return {"USER": "default", "PASSWORD": self.url.rpartition("@")[0].rpartition(":")[2]}


def granted_too_much(new: Newcomer) -> None:
    new.run.set_policy(ALLOW_ALL)  # the default one refuses it first
    new.r.hset("t:1:h", "allowRedis", "chat:*,t:*")
    new.works_after(new.fails(code=78, said="which covers t:1:h"))
    assert new.r.hget("t:1:h", "allowRedis") == "chat:*"
    new.r.hset("t:1:h", "requestStream", "res:x")
    new.works_after(new.fails(code=78, said="every worker may write keys of this form"))
    assert new.r.hget("t:1:h", "requestStream") == "t:req:x"


def granted_too_little(new: Newcomer) -> None:
    new.r.hset("t:1:h", mapping={"allowRedis": "chat:*", "denyRedis": "chat:1"})
    new.works_after(new.fails(code=78, said="allowRedis does not list exactly that"))
    assert not new.r.hexists("t:1:h", "denyRedis")
    new.r.hset("t:1:h", "responseStream", "other:x")
    new.works_after(new.fails(code=78, said="nor does allowRedis list it"))
    assert new.r.hget("t:1:h", "allowRedis") == "chat:*,other:x"


def wrong_password(new: Newcomer) -> None:
    new.run.env["REDIS_URL"] = new.url.replace("//:", "//:no")
    new.works_after(new.fails(code=75, said="refuses the login"), **new.login)


def no_redis(new: Newcomer) -> None:
    host, _, port = new.url.rpartition("@")[2].partition(":")
    for url, code, said in (
        ("redis://127.0.0.1:1", 75, "cannot be reached (Connection refused)"),
        ("http://127.0.0.1", 64, "begins with 'http'"),
        ("redis://127.0.0.1:70000", 64, "port is not between 1 and 65535"),
        ("redis://127.0.0.1:x", 64, "the Redis URL is not valid"),
        ("redis://127.0.0.1?protocol=4", 64, "protocol is 4"),
    ):
        new.run.env["REDIS_URL"] = url
        new.works_after(new.fails(code=code, said=said), **new.login, HOST=host, PORT=port)


def no_path(new: Newcomer) -> None:
    with embedded.server(unix_socket=True) as url, redis.Redis.from_url(url) as r:
        r.hset("t:1:h", mapping=new.r.hgetall("t:1:h"))
        new.run.env["REDIS_URL"] = "unix://"
        password, _, path = url.removeprefix("unix://:").partition("@/")
        new.works_after(new.fails(code=64, said="has no path"), USER="default", PASSWORD=password, PATH=path)


def wrong_certificate(new: Newcomer) -> None:
    made = certificates.make(new.folder, "IP:127.0.0.1")
    settings = (
        "requirepass secret",
        "tls-auth-clients no",
        f"tls-cert-file {made.certificate}",
        f"tls-key-file {made.key}",
        f"tls-ca-cert-file {made.authority}",
    )
    with servers.Own(*settings, program=servers.program("redis-7"), tls=True) as server:
        url = server.url.replace("//", "//:secret@")
        with redis.Redis.from_url(f"{url}?ssl_ca_certs={made.authority}") as r:
            r.hset("t:1:h", mapping=new.r.hgetall("t:1:h"))
        for query, code, said in (
            ("", 75, "has a certificate that is not to be trusted"),
            ("?ssl_ca_certs=relative.crt", 64, "is not an absolute path"),
            ("?ssl_ca_certs=/nonexistent.crt", 64, "cannot be read as certificates in PEM"),
        ):
            new.run.env["REDIS_URL"] = url + query
            hint = new.fails(code=code, said=said)
            new.works_after(hint, USER="default", PASSWORD="secret", FILE=str(made.authority)[1:])


def runs_already(new: Newcomer) -> None:
    (new.folder / "worker.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    with new.run.start("t", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        hint = new.fails(code=73, said="t:1:h runs already as process")
        (new.folder / "worker.py").write_text(RAN)
        new.works_after(hint)
        process.wait(20)


def too_many_names(new: Newcomer) -> None:
    names = [f"{number:03}" + "x" * 100_000 for number in range(168)]
    for name in names:
        new.r.hset("t:1:h", name, "")
    new.run.env["REDIS_URL"] = new.url.replace("//:", "//default:")  # as redis-cli reads it
    hint = new.fails(code=78, said="have more than 16 MiB of names of fields")
    new.works_after(hint, FIELD=names[0])


def end_stream(r: redis.Redis) -> None:
    r.xadd("t:req:x", {"ref": "last", "type": "t", "data": "{}"}, id="18446744073709551615-18446744073709551615")


def large_entry(new: Newcomer) -> None:
    new.r.xadd("t:req:x", {"data": b"x" * (17 << 20)})
    end_stream(new.r)
    new.run.env["REDIS_URL"] = new.url.replace("//:", "//default:")  # as redis-cli reads it
    repair = ("stream", "t", "repair")
    done = new.run(*repair)
    hint = new.hint(Done(done.code, "", done.err), 78, "is too large to be copied")
    new.works_after(hint, "sandboxrun", *repair)


def in_a_workers_hands(new: Newcomer) -> None:
    script = "from sandboxrun import worker\nimport time\nworker.handler(lambda request: time.sleep(5))\nworker.run()\n"
    (new.folder / "worker.py").write_text(script)
    with new.run.start("t", "1") as process:
        wait_for(lambda: new.r.exists("t:req:x"), 20)
        end_stream(new.r)
        wait_for(lambda: new.r.xpending("t:req:x", "worker")["pending"], 20)
        done = new.run("stream", "t", "repair")
        hint = new.hint(Done(done.code, "", done.err), 78, "and its id cannot be kept")
        new.works_after(hint, "sandboxrun", "stream", "t", "repair", ID="1")
        process.wait(20)


def changed_meanwhile(new: Newcomer) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.set()
        go_on.wait(20)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(RAN)))
        handler.end_headers()
        handler.wfile.write(RAN.encode())

    new.host.files["/v1.0.0/worker.py"] = slow
    change = ("set", "t", "1", f"url={new.host.url}/{{version}}/worker.py", "version=v1.0.0")
    with new.run.start(*change) as process:
        assert asked.wait(20)
        new.r.hset("t:1:h", "note", "changed")
        go_on.set()
        out, err = process.communicate(timeout=30)
    assert process.returncode is not None
    hint = new.hint(Done(process.returncode, out.decode(), err.decode()), 75, "field note of t:1:h changed meanwhile")
    new.works_after(hint, "sandboxrun", *map(repr, change))
    assert new.r.hget("t:1:h", "version") == "v1.0.0"


def no_acl(new: Newcomer) -> None:
    new.r.execute_command("ACL", "SETUSER", "operator", "on", ">secret", "~*", "&*", "+@all", "-acl")
    new.run.env["REDIS_URL"] = new.url.replace(f":{new.login['PASSWORD']}@", "operator:secret@")
    hint = new.fails(code=71, said="the Redis login 'operator' may not make a user for the worker")
    new.works_after(hint, ADMIN="default", PASSWORD=new.login["PASSWORD"])
    new.r.acl_deluser("operator")


def without_a_password(new: Newcomer) -> None:
    for policy in (None, "", '[worker."*"]\nlimit-memory = "1G"'):
        with servers.Own() as server, redis.Redis.from_url(server.url) as r:
            new.run.set_policy(policy)
            r.hset("t:1:h", mapping=new.r.hgetall("t:1:h"))
            new.run.env["REDIS_URL"] = server.url
            hint = new.fails(code=71, said="accepts commands without a password, so a worker could ignore")
            new.works_after(hint)
            assert new.run.policy.stat().st_mode & 0o077 == 0
            assert new.run("u", "1").code == 78  # not 71: it is accepted for every worker


def forbidden_without_a_password(new: Newcomer) -> None:
    with servers.Own() as server, redis.Redis.from_url(server.url) as r:
        new.run.set_policy('[worker."*"]\nopen-redis = false\n')
        r.hset("t:1:h", mapping=new.r.hgetall("t:1:h"))
        new.run.env["REDIS_URL"] = server.url
        new.works_after(new.fails(code=71, said="policy.toml:2 does not allow"), PASSWORD="secret")


def forbidden_at_a_socket(new: Newcomer) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        servers.Own(f"unixsocket {folder}/redis.sock") as server,
        redis.Redis.from_url(server.url) as r,
    ):
        new.run.set_policy('[worker."*"]\nopen-redis = false\n')
        r.hset("t:1:h", mapping=new.r.hgetall("t:1:h"))
        new.run.env["REDIS_URL"] = f"unix://{folder}/redis.sock"
        new.works_after(new.fails(code=71, said="policy.toml:2 does not allow"), PASSWORD="secret")


SITUATIONS: dict[str, Callable[[Newcomer], None]] = {
    "sandboxrun set {} {} {}={}": granted_too_much,
    "{}\nsandboxrun approve {} {}": granted_too_little,
    "export REDIS_URL={}://USER:PASSWORD@{}": wrong_password,
    "export REDIS_URL=redis://USER:PASSWORD@HOST:PORT": no_redis,
    "export REDIS_URL=unix://USER:PASSWORD@/PATH": no_path,
    "export REDIS_URL='rediss://USER:PASSWORD@'{}'?ssl_ca_certs=/FILE'": wrong_certificate,
    "sandboxrun stop {}": runs_already,
    "sandboxrun stop {} ID": in_a_workers_hands,
    'redis-cli -u "$REDIS_URL" XDEL {} {}': large_entry,
    'redis-cli -u "$REDIS_URL" HDEL {} FIELD': too_many_names,
    "sandboxrun show {} {}": changed_meanwhile,
    "redis-cli {} ACL SETUSER {} '+acl|setuser' '+acl|deluser' '+acl|users'": no_acl,
    "(umask 077; mkdir -p {}; cat >>{}) <<'END'\n\n{}\nopen-redis = true\nEND": without_a_password,
    "redis-cli -u {} CONFIG SET requirepass PASSWORD\nexport REDIS_URL={}://default:PASSWORD@{}": forbidden_without_a_password,
    "redis-cli -s {} CONFIG SET requirepass PASSWORD\nexport REDIS_URL=unix://default:PASSWORD@{}": forbidden_at_a_socket,
}  # fmt: skip
ELSEWHERE = {
    "sandboxrun stream {} trim": "a stream of a million entries",
    "python3 -m pip install 'sandboxrun[embedded]'": "a host without redis-server, and a package index",
}


@pytest.fixture
def newcomer(
    r: redis.Redis, redis_url: str, run: Runner, host: RawHost, tmp_path: Path
) -> Iterator[Callable[[str], Newcomer]]:
    folder = tmp_path / "worker"
    folder.mkdir()
    (folder / "worker.py").write_text(RAN)
    r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
    run.set_policy(None)
    yield lambda template: Newcomer(r, redis_url, run, host, folder, template)
    r.flushall()


@pytest.mark.parametrize("template", SITUATIONS)
def test_a_hint_that_is_pasted_ends_the_trouble(newcomer: Callable[[str], Newcomer], template: str) -> None:
    SITUATIONS[template](newcomer(template))


def test_these_are_all_the_hints() -> None:
    assert set(templates("redis")) == {*SITUATIONS, *ELSEWHERE}
