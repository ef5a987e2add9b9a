"""Each hint of the command line: the error appears, the hint is pasted in that very situation, and the trouble is over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from hints import DRAIN, hint_of, is_of, paste, templates
from leases import lease
from runner import Done, Runner

Local = Callable[..., Path]
SCRIPT = "print('ran')\n"


@dataclass
class Beginner:
    run: Runner
    r: redis.Redis
    local: Local
    template: str = ""

    def hint(self, *args: str, code: int = 64, stdin: str = "") -> str:
        """The hint of a command that fails, which must be of the template."""
        done = self.run(*args, stdin=stdin)
        assert done.code == code, done
        return self.checked(hint_of(done.err or done.out))

    def checked(self, hint: str) -> str:
        assert is_of(self.template, hint), hint
        return hint

    def paste(self, hint: str, *, stdin: str = "", code: int = 0, **placeholders: str) -> str:
        done = paste(hint, self.run.env, self.run.home, stdin=stdin, **placeholders)
        assert done.returncode == code, done
        return done.stdout

    def again(self, *args: str, stdin: str = "") -> Done:
        done = self.run(*args, stdin=stdin)
        assert done.code == 0, done
        return done


def audit(b: Beginner) -> None:
    b.local(SCRIPT)
    hint = b.hint("audit", "a log", code=78)
    b.paste(hint, TYPE="t", ID="1")
    assert b.again("audit", "a log").out


def call_data(b: Beginner) -> None:
    b.r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    hint = b.hint("call", "t", "text", "--timeout", "0.3")
    b.paste(f"{hint} --timeout 0.3", code=75, KEY="name")  # it is sent, and nobody is there to answer
    assert json.loads(b.r.xrange("t:req:x")[0][1]["data"]) == {"name": "text"}


def call_type(b: Beginner) -> None:
    b.local(SCRIPT, key="zebra:1:h")
    hint = b.hint("call", "t", "x=1", "--timeout", "0.3", code=78)
    assert "zebra 1" in b.paste(hint)
    assert b.run("call", "zebra", "x=1", "--timeout", "0.3").code == 75  # it is sent


def completion(b: Beginner) -> None:
    assert "complete -F" in b.paste(b.hint("completion", "bsh"))


def dead_list(b: Beginner) -> None:
    xid = b.r.xadd("t:dead:x", {"ref": "r"})
    assert xid in b.paste(b.hint("dead", "t", "list", xid))


def dead_letter(b: Beginner) -> None:
    xid = b.r.xadd("t:dead:x", {"ref": "r"})
    out = b.paste(b.hint("dead", "t", "show", "1-1", code=78))
    b.again("dead", "t", "show", out.split()[0])
    assert out.startswith(xid)


def encrypt(b: Beginner) -> None:
    hint = b.hint("encrypt", "t", "1", "--key-file", "a key", "--write", code=78)
    b.paste(hint, NAME="token", VALUE="t0ken")
    assert b.r.hexists("t:1:h", "encryptedJson")


def key_file(b: Beginner) -> None:
    (b.run.home / "a key").write_text("no key\n")
    args = ("encrypt", "t", "1", "--key-file", "a key", "--write")
    b.paste(b.hint(*args, code=78, stdin="{}"))
    b.again(*args, stdin="{}")
    assert (b.run.home / "a key.old").read_text() == "no key\n"


def help_near(b: Beginner) -> None:
    assert "usage: sandboxrun perms" in b.paste(b.hint("help", "perm"))


def help_all(b: Beginner) -> None:
    assert "usage: sandboxrun" in b.paste(b.hint("help", "zzzzzzz"))


def info(b: Beginner) -> None:
    b.paste(b.hint("info", "t", code=78))
    b.again("info", "t")


def logs(b: Beginner) -> None:
    b.local(SCRIPT)
    b.paste(b.hint("logs", "t", "1", code=78))
    assert "ran" in b.again("logs", "t", "1").out


def logs_elsewhere(b: Beginner) -> None:
    b.local("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    with b.run.start("t", "1", "--no-log") as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        hint = b.hint("logs", "t", "1", code=78)
        b.local(SCRIPT)
        b.paste(hint)
        process.wait(20)
    assert "ran" in b.again("logs", "t", "1").out


def no_hash(b: Beginner) -> None:
    folder = b.local(SCRIPT, key="other:1:h")
    b.paste(b.hint("show", "t", "1", code=78), URL=str(folder), VERSION="local")
    b.again("show", "t", "1")


def command(b: Beginner) -> None:
    assert "usage: sandboxrun perms" in b.paste(b.hint("perm", "--help"))


def command_with_password(b: Beginner) -> None:
    hint = b.hint("stp", "t", "1", "--redis", "redis://:s3cret@127.0.0.1")
    assert "usage: sandboxrun stop" in b.paste(hint)


def option(b: Beginner) -> None:
    assert "usage: sandboxrun ps" in b.paste(b.hint("ps", "--zzzzzz"))


def words_again(b: Beginner) -> None:
    assert "no worker runs" in b.paste(b.hint("ps", "--heer"))
    b.local(SCRIPT)
    assert "t:1:h" in b.paste(b.hint("show", "t", "--jsno", "1"))
    assert b.paste(b.hint("show", "t"), ID="1")


def plugin_near(b: Beginner) -> None:
    assert "sandboxrun set http-get 1" in b.paste(b.hint("plugins", "http-gte"))


def plugins(b: Beginner) -> None:
    assert "http-get" in b.paste(b.hint("plugins", "zebra"))


def ps_type(b: Beginner) -> None:
    b.local(SCRIPT)
    assert "t 1" in b.paste(b.checked(hint_of(b.again("ps", "t").out)))


def ps_stale(b: Beginner) -> None:
    b.r.hset("t:1:h", mapping=lease(b.r, age=60))
    b.paste(b.checked(hint_of(b.again("ps").err)))
    assert b.again("ps").err == ""


def start_none(b: Beginner) -> None:
    b.local(SCRIPT)
    assert "t 1 is ordered\n" in b.paste(b.hint("start", "t", code=78))


def start_unknown(b: Beginner) -> None:
    folder = b.local(SCRIPT, key="zebra:1:h")
    b.paste(b.hint("start", "t", "1", code=78), URL=str(folder), VERSION="local")
    b.again("start", "t", "1")


def agent_without_type(b: Beginner) -> None:
    b.local(SCRIPT)
    hint = b.hint("agent")
    assert "drains" in b.paste(f"{hint} & {DRAIN}", TYPE="t")


def spec_schema(b: Beginner) -> None:
    assert '"title": "spec.json of sandboxrun"' in b.paste(b.hint("spec", "schema", "t"))


def sync_schema(b: Beginner) -> None:
    assert '"title": "sync.json of sandboxrun"' in b.paste(b.hint("sync", "schema", "shop"))


def spec_type(b: Beginner) -> None:
    (b.local(SCRIPT, key="zebra:1:h") / "spec.json").write_text('{"type": "zebra"}')
    assert "worker type zebra" in b.paste(b.hint("spec", "types", "zebre", code=78))


def stream_delete(b: Beginner) -> None:
    b.r.xadd("t:req:x", {"ref": "r"})
    b.paste(b.hint("stream", "t", "delete", code=78))
    assert b.r.keys() == []


def trace(b: Beginner) -> None:
    b.r.xadd("t:res:x", {"ref": "r1", "code": "200", "res": "{}", "xid": "1-1"})
    assert "r1" in b.paste(b.hint("trace", "r2", code=78), TYPE="t")
    b.again("trace", "r1", "--type", "t")


def cache_digest(b: Beginner) -> None:
    b.again("cache")
    b.paste(b.hint("cache", "--remove", "0" * 12))


def cache_digests(b: Beginner) -> None:
    b.again("cache")
    blobs = b.run.home / ".cache/sandboxrun/blobs"
    for digit in "12":
        (blobs / ("0" * 8 + digit * 56)).write_text("")
    listed = b.paste(b.hint("cache", "--remove", "0" * 8))
    assert [entry["digest"][:9] for entry in json.loads(listed)["files"]] == ["0" * 8 + "1", "0" * 8 + "2"]


def cache_damaged(b: Beginner) -> None:
    b.again("cache")
    for digit in "12":
        (b.run.home / ".cache/sandboxrun/blobs" / (digit * 64)).write_text("")
    b.paste(b.hint("cache", "--verify", code=65))
    assert "0 entries" in b.again("cache", "--verify").out


SITUATIONS: dict[str, Callable[[Beginner], None]] = {
    "sandboxrun TYPE ID --audit {}": audit,
    "sandboxrun cache": cache_digest,
    "sandboxrun cache --json": cache_digests,
    "sandboxrun cache {}": cache_damaged,
    "sandboxrun call {} {}": call_data,
    "sandboxrun ps --all": call_type,
    "sandboxrun completion {}": completion,
    "sandboxrun dead {} show {}": dead_list,
    "sandboxrun dead {}": dead_letter,
    'echo \'{"NAME":"VALUE"}\' | sandboxrun encrypt {} {} --key-file {}{}': encrypt,
    "mv -n {} {}": key_file,
    "sandboxrun help {}": help_near,
    "sandboxrun help": help_all,
    "sandboxrun stream {} create": info,
    "sandboxrun {} {}": logs,
    "sandboxrun stop {} {} && sandboxrun {} {}": logs_elsewhere,
    "sandboxrun set {} {} url=URL version=VERSION": no_hash,
    "sandboxrun plugins {}": plugin_near,
    "sandboxrun plugins": plugins,
    "sandboxrun {}": command,
    "sandboxrun {} --help": command_with_password,
    "{} --help": option,
    "{} {}": words_again,
    "sandboxrun ps {} --all": ps_type,
    "sandboxrun agent TYPE": agent_without_type,
    "sandboxrun start {} 1": start_none,
    "sandboxrun set {} url=URL version=VERSION": start_unknown,
    "sandboxrun stop {}": ps_stale,
    "sandboxrun spec schema": spec_schema,
    "sandboxrun spec {} {}": spec_type,
    "sandboxrun sync schema": sync_schema,
    "sandboxrun stream {} delete --force": stream_delete,
    "sandboxrun stream {} responses": trace,
}


ELSEWHERE = {
    "pip install 'sandboxrun[dev]'": "installs a package, so it needs an index, and an environment without time-machine",
}


def test_each_hint_has_its_situation() -> None:
    elsewhere = templates("cli/dev.py").keys() | templates("cli/redish.py").keys()  # test_dev.py
    elsewhere |= templates("cli/lock.py").keys()  # test_lock.py
    assert templates("cli").keys() - elsewhere == {*SITUATIONS, *ELSEWHERE}


@pytest.mark.parametrize("template", SITUATIONS)
def test_a_hint_ends_the_trouble(r: redis.Redis, run: Runner, local: Local, template: str) -> None:
    SITUATIONS[template](Beginner(run, r, local, template))
