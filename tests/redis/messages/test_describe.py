"""The hints of `sandboxrun doctor` and `sandboxrun set`: each is pasted in the situation that shows it, and the trouble is over."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from hints import hint_of, is_of, paste, templates
from leases import lease
from runner import Runner
from servers import Own

from sandboxrun.redis import embedded

Local = Callable[..., Path]
SCRIPT = "print('ran')\n"
WAIT = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
DOCTOR = ("sandboxrun", "doctor", "--json")
ROOT = os.geteuid() == 0
# As any other user, whom the modes of files bind.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if ROOT else []


class Desk:
    """A home folder with an odd name, and a Redis in which nothing is wrong."""

    def __init__(self, r: redis.Redis, run: Runner, local: Local, template: str) -> None:
        self.r, self.run, self.local, self.template = r, run, local, template
        self.cache, self.state = run.home / ".cache/sandboxrun", run.home / ".local/state/sandboxrun"
        self.password = run.env["REDIS_URL"].rpartition("@")[0].rpartition(":")[2]

    def refused(self, *args: str) -> str:
        """The hint of a command line that is wrong."""
        done = self.run(*args)
        assert (done.code, done.out) == (64, ""), done
        return self.checked(hint_of(done.err))

    def checked(self, hint: str) -> str:
        assert is_of(self.template, hint.partition(" --redis ")[0]), hint
        return hint

    def paste(self, hint: str, **placeholders: str) -> str:
        done = paste(hint, self.run.env, self.run.home, **placeholders)
        assert done.returncode == 0, done
        return done.stdout

    def doctor(self, *words: str, before: str = "", **placeholders: str) -> list[dict[str, Any]]:
        """What doctor finds, in the shell in which `before` was pasted."""
        done = paste(f"{before}\n{shlex.join(words or DOCTOR)}", self.run.env, self.run.home, **placeholders)
        assert done.returncode in (0, 71), done
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["findings"]
        return found

    def hint(self, said: str, *words: str, before: str = "") -> str:
        found = self.doctor(*words, before=before)
        finding = next((each for each in found if said in each["text"] and each["level"] != "ok"), None)
        assert finding is not None, found
        return self.checked("\n".join(finding["hint"]))

    def ends(self, said: str, now: str, *words: str, **placeholders: str) -> None:
        """Doctor says `said`; once its hint is pasted, it says `now` instead."""
        hint = self.hint(said, *words)
        texts = [each["text"] for each in self.doctor(*words, before=hint, **placeholders) if each["level"] == "ok"]
        assert any(now in text for text in texts), (hint, texts)
        assert not any(said in text for text in texts), texts


def settable_after_a_stop(desk: Desk) -> None:
    desk.local(WAIT)
    with desk.run.start("t", "1") as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        desk.paste(desk.refused("set", "t", "1", "pid="))
        process.wait(20)
    desk.r.hset("t:1:h", mapping=lease(desk.r, age=60))
    desk.paste(desk.refused("set", "t", "1", "--delete", "pidHost"))
    assert not {"pid", "pidHost"} & set(desk.r.hgetall("t:1:h"))


def settable_after_all_have_stopped(desk: Desk) -> None:
    for id_ in ("1", "2"):
        desk.local(SCRIPT, f"t:{id_}:h", **lease(desk.r, age=60))
    desk.paste(desk.refused("set", "t", "pid="))
    assert not any(desk.r.hexists(f"t:{id_}:h", "pid") for id_ in ("1", "2"))


def a_count_by_scale(desk: Desk) -> None:
    desk.local(SCRIPT)
    desk.paste(desk.refused("set", "t", "count=3"))
    assert (desk.r.hget("t:h", "count"), desk.r.llen("t:start:q")) == ("3", 3)


def secrets_of_a_worker(desk: Desk) -> None:
    desk.local("from sandboxrun import worker\nprint(worker.secrets()['token'])\n")
    for words, more in ((("t", "1"), {}), (("t",), {"ID": "1"})):
        hint = desk.refused("set", *words, "encryptedJson={}")
        desk.paste(hint, NAME="token", VALUE=words[-1], FILE="key", **more)
        done = desk.run("t", "1", stdin=(desk.run.home / "key").read_bytes())
        assert (done.code, done.out) == (0, f"{words[-1]}\n"), done


def files_where_folders_belong(desk: Desk) -> None:
    desk.cache.parent.mkdir()
    desk.cache.write_text("kept\n")
    desk.cache.with_name("sandboxrun.old").write_text("mine\n")
    desk.ends(f"{desk.cache} is not a folder", f"cache {desk.cache} does not exist yet")
    assert desk.cache.with_name("sandboxrun.old").read_text() == "mine\n"
    assert desk.cache.with_name("sandboxrun.old2").read_text() == "kept\n"
    for make in (
        lambda path: path.write_text(""),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path),
    ):
        make(desk.run.home / ".local")
        desk.ends(f"{desk.run.home}/.local is not a folder", f"state {desk.state} does not exist yet")


def folders_that_are_closed(desk: Desk) -> None:
    words = (*BOUND, *DOCTOR)
    desk.cache.mkdir(parents=True)
    for mode in (0o500, 0o600):
        desk.cache.chmod(mode)
        desk.ends(f"cache {desk.cache} is closed to its owner", f"cache {desk.cache}: mode 700", *words)
    desk.cache.parent.chmod(0)
    desk.ends(f"cache {desk.cache} cannot be examined", f"cache {desk.cache}: mode 700", *words)


def folders_that_others_can_write(desk: Desk) -> None:
    desk.state.mkdir(parents=True)
    desk.state.chmod(0o777)
    desk.ends("is writable for others (mode 777)", f"state {desk.state}: mode 700")


def another_users_home(desk: Desk) -> None:
    own = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    if ROOT:
        desk.cache.mkdir(parents=True)
        for path in (desk.run.home, desk.cache):
            os.chown(path, 65534, 65534)
        said = f"cache {desk.cache} belongs to another user"
    else:
        desk.run.env["HOME"] = "/root"
        said = "cache /root/.cache/sandboxrun cannot be examined: Permission denied"
    desk.ends(said, f"cache {own}/.cache/sandboxrun")


def mounted(desk: Desk, mount: str) -> tuple[str, ...]:
    """Words before a command, which run it where the folder of the cache is such a mount."""
    desk.cache.mkdir(parents=True)
    words = ["unshare", *([] if ROOT else ["-U", "-r"]), "--mount"]
    script = f'cache={shlex.quote(str(desk.cache))}; {mount}; exec "$@"'
    return (*words, "sh", "-ec", script, "sh")


def a_mount_that_is_read_only(desk: Desk) -> None:
    words = mounted(desk, 'mount --bind "$cache" "$cache"; mount -o remount,bind,ro "$cache"')
    other = desk.run.home / "other/sandboxrun"
    other.mkdir(parents=True)
    said, folder = "is in a file system that is read-only", str(other.parent)[1:]
    desk.ends(said, f"cache {other}: mode 755", *words, *DOCTOR, FOLDER=shlex.quote(folder))


def a_mount_that_is_full(desk: Desk) -> None:
    (desk.run.home / "blob").write_bytes(b"#" * (50 << 20))
    mount = 'mount -t tmpfs -o size=100m,mode=700 none "$cache"; mkdir -m 700 "$cache/blobs"; cp blob "$cache/blobs"'
    words = mounted(desk, mount)
    hint = desk.hint(f"the file system of {desk.cache} has only 50 MiB left", *words, *DOCTOR)
    found = desk.doctor(*words, "sh", "-ec", f"{hint} >&2\n{shlex.join(DOCTOR)}")  # in the same mount
    assert not [each for each in found if "MiB left" in each["text"]]
    assert f"cache {desk.cache}: mode 700, 0 files, 0 KiB" in [each["text"] for each in found]


def a_policy_that_is_no_toml(desk: Desk) -> None:
    desk.run.set_policy('[worker."*"\nallow-net = []\n')
    desk.run.env["EDITOR"] = "sed -i 1s/$/]/"
    desk.ends(": nothing runs until this is corrected", f"{desk.run.policy} applies, with 1 sections: '*'")


def few_rights(desk: Desk) -> None:
    with embedded.server(unix_socket=True) as other:
        for url in (desk.run.env["REDIS_URL"], other):
            password = url.partition("://:")[2].partition("@")[0]
            with redis.Redis.from_url(url) as r:
                commands = ["+@all", "-acl", "-hdel", "-hkeys", "-info", "-scan", "-time"]
                r.acl_setuser("few", enabled=True, passwords=["+p4ss"], keys=["t:*"], commands=commands)
                try:
                    desk.run.env["REDIS_URL"] = url.replace(f":{password}@", "few:p4ss@")
                    rules = _follow_all(desk, ADMIN="default", PASSWORD=password)
                    assert {"+hdel", "+hkeys", "+info", "+scan", "+time", "+acl|setuser", "~*"} <= rules
                    assert "+@all" not in rules and desk.run("ps").err == ""
                finally:
                    r.acl_deluser("few")


def _follow_all(desk: Desk, **placeholders: str) -> set[str]:
    """Paste each hint of this template until there is none; the rules that were given."""
    rules: set[str] = set()
    for _ in range(4):
        found = [each for each in desk.doctor() if each["hint"] and is_of(desk.template, each["hint"][0])]
        if not found:
            return rules
        for each in found:
            desk.paste(each["hint"][0], **placeholders)
            rules |= set(shlex.split(each["hint"][0].partition(" SETUSER few ")[2]))
    raise AssertionError(found)


@contextlib.contextmanager
def own(desk: Desk, *settings: str, login: str = "") -> Iterator[Own]:
    with Own("requirepass secret", *settings) as server:
        desk.run.env["REDIS_URL"] = server.url.replace("//", f"//{login}:secret@")
        yield server


def a_replica(desk: Desk) -> None:
    with own(desk) as primary:
        copied = f"replicaof 127.0.0.1 {primary.port}"
        with own(desk, copied, "masterauth secret"):
            said, now = "it is a replica that cannot be written", "may run the commands of a start"
            desk.ends(said, now, USER="default", PASSWORD="secret")
        with Own("replicaof 127.0.0.1 1") as replica:
            desk.run.env["REDIS_URL"] = replica.url
            assert desk.hint(said) == "export REDIS_URL=redis://127.0.0.1:1"


def a_slow_command(desk: Desk) -> None:
    script = (
        "local t = redis.call('TIME') repeat local n = redis.call('TIME') until (n[1]-t[1])*1e6 + n[2]-t[2] > 25000"
    )
    script = (
        f"{script} --{'x' * 12_000}"  # so long that Redis runs one or two at a time, and others' commands in between
    )
    call = f"*3\r\n$4\r\nEVAL\r\n${len(script)}\r\n{script}\r\n$1\r\n0\r\n".encode()

    def work(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as sock, contextlib.suppress(OSError):
            sock.sendall(b"AUTH secret\r\n" + 1000 * call)

    with own(desk) as server, redis.Redis(port=server.port, password="secret") as r:
        threads = [threading.Thread(target=work, args=(server.port,)) for _ in range(3)]
        try:
            for thread in threads:
                thread.start()
            hint = desk.hint("it is slow or far away")
            assert "repeat local n" in desk.paste(hint)
        finally:
            r.client_kill_filter(_type="normal", skipme=True)
            for thread in threads:
                thread.join()
        # On a busy machine, the first answers of a fast server may be slow as well.
        wait_for(lambda: not [each for each in desk.doctor() if "it is slow or far away" in each["text"]], 60)


def no_log_of_writes(desk: Desk) -> None:
    said, now = "it does not log writes (AOF)", "it logs each write to disk (AOF)"
    for login in ("", "default"):
        with own(desk, login=login):
            desk.ends(said, now)
    with own(desk) as server:
        desk.run.env["REDIS_URL"] = "no URL"
        desk.ends(said, now, *DOCTOR, f"--redis=redis://:secret@127.0.0.1:{server.port}", PASSWORD="secret")


def any_key_is_evicted(desk: Desk) -> None:
    with tempfile.TemporaryDirectory(prefix="it's ", dir="/tmp") as folder:
        settings = ("maxmemory 100mb", "maxmemory-policy allkeys-lru", f'unixsocket "{folder}/a socket"')
        with own(desk, *settings, "appendonly yes") as server:
            desk.run.env["REDIS_URL"] = f"unix://:secret@{folder}/a socket"
            hint = desk.hint("it evicts any key (allkeys-lru)")
            found = desk.doctor(before=hint, PASSWORD="secret")
            assert not [each for each in found if "evicts" in each["text"]]
            with redis.Redis(port=server.port, password="secret", decode_responses=True) as r:
                assert r.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def left_behind(desk: Desk) -> None:
    now = "0 of 1 run, and killed runs have left nothing"
    desk.local(SCRIPT, **lease(desk.r, age=60))
    desk.ends("1 stale pid: t 1", now)
    desk.r.acl_setuser("sandboxrun:t:1:0123456789abcdef:1.2.3", enabled=False)
    desk.ends("1 Redis user of killed runs", now)
    with Own("requirepass secret") as server, redis.Redis(port=server.port, password="secret") as r:
        for login, words in (("", {}), (":secret@", {"USER": "default", "PASSWORD": "secret"})):
            r.config_set("requirepass", "secret" if login else "")
            r.hset("t:1:h", mapping={"url": "/x", **lease(r, age=60)})
            url = server.url.replace("//", f"//{login}")
            desk.ends("1 stale pid: t 1", now, *DOCTOR, "--redis", url, **words)


def many_hashes(desk: Desk) -> None:
    pipeline = desk.r.pipeline()
    for number in range(10_001):
        pipeline.hset(f"t:{number}:h", "url", "/x")
    pipeline.hset("u:1:h", mapping=lease(desk.r, age=60))
    pipeline.execute()
    hint = desk.hint("there are more than 10000 hashes of workers")
    assert "u 1 " in desk.paste(f"{hint} 2>&1", TYPE="u")


def long_names(desk: Desk) -> None:
    desk.local(SCRIPT, "z:1:h")
    pipeline = desk.r.pipeline()
    for number in range(1000):
        pipeline.hset(f"t:{number:03}{'x' * 100_000}:h", "url", "/x")
    pipeline.execute()
    hint = desk.hint("names of keys have more than 64 MiB")
    assert desk.paste(hint, TYPE="z", ID="1").startswith("z 1\n")


def a_worker_that_keeps_ending(desk: Desk) -> None:
    desk.local(SCRIPT)
    assert desk.run("t", "1").code == 0
    desk.r.hset("t:1:h", mapping={"pidAgent": "a1", "pidRestarts": 7, "pidReason": "KeyError: 'x'"})
    hint = desk.hint("t 1 keeps ending, after 7 restarts: KeyError: 'x'")
    assert "ended with exit code 0" in desk.paste(hint)


def many_that_keep_ending(desk: Desk) -> None:
    for number in range(7):
        desk.r.hset(f"t:{number}:h", mapping={"pidAgent": "a1", "pidRestarts": 7})
    assert desk.paste(desk.hint("and 2 more workers keep ending")).count(" failing ") == 7


def many_keys_and_agents(desk: Desk) -> None:
    pipeline = desk.r.pipeline()
    for number in range(50_001):
        pipeline.set(f"k{number}", "")
    pipeline.execute()
    desk.r.hset("u:1:h", "url", "/x")
    now = int(desk.r.time()[0])
    entry = {
        "name": "n",
        "host": "h/1",
        "pid": 1,
        "started": 1,
        "since": now,
        "seen": now,
        "types": [],
        "workers": 0,
        "most": 1,
    }
    desk.r.hset("sandboxrun:agents", "a1", json.dumps({**entry, "draining": False}))
    assert "u 1 " in desk.paste(desk.hint("this Redis has many keys and agents"))


def a_stream_that_is_exhausted(desk: Desk) -> None:
    desk.local(SCRIPT)
    desk.r.xadd("t:req:x", {"ref": "x"}, id="18446744073709551615-18446744073709551615")
    assert "t:req:x is repaired" in desk.paste(desk.hint("t:req:x is exhausted"))
    assert not [each for each in desk.doctor() if each["area"] == "streams"]


SITUATIONS: dict[str, Callable[[Desk], None]] = {
    "sandboxrun logs {} -n 50": a_worker_that_keeps_ending,
    "sandboxrun ps": many_that_keep_ending,
    "sandboxrun ps --all": many_keys_and_agents,
    "sandboxrun stop {}": settable_after_a_stop,
    "sandboxrun stop {} --all": settable_after_all_have_stopped,
    "sandboxrun scale {} {}": a_count_by_scale,
    'echo \'{"NAME":"VALUE"}\' | sandboxrun encrypt {} --key-file FILE --write': secrets_of_a_worker,
    "mv -n {} {}": files_where_folders_belong,
    "chmod u+rwx {}": folders_that_are_closed,
    "chmod 700 {}": folders_that_others_can_write,
    "export HOME={}": another_users_home,
    "export XDG_{}_HOME=/FOLDER": a_mount_that_is_read_only,
    "sandboxrun cache --clean": a_mount_that_is_full,
    "${EDITOR:-vi} {}": a_policy_that_is_no_toml,
    "redis-cli {} --user ADMIN --pass PASSWORD {}": few_rights,
    "export REDIS_URL={}://{}{}{}": a_replica,
    "{} SLOWLOG GET 10": a_slow_command,
    "{} CONFIG SET appendonly yes": no_log_of_writes,
    "{} CONFIG SET maxmemory-policy noeviction": any_key_is_evicted,
    "sandboxrun stop --stale": left_behind,
    "sandboxrun ps TYPE": many_hashes,
    "sandboxrun stream {} repair": a_stream_that_is_exhausted,
    "sandboxrun show TYPE ID": long_names,
}
ELSEWHERE = {
    "sandboxrun agent {}": "tests/redis/test_ps_agents.py: an agent runs until it is ended",
    "sandboxrun check": "a kernel in which a protection does not hold",
    "sudo chown -R {} {}": "needs root: a folder of another user, below a home folder of one's own",
    "namei -l {}": "needs a folder of another user that is closed, below a home folder of one's own",
    "sudoedit {}": "needs root: the administrator's policy file",
    "sudo timedatectl set-ntp true": "needs root, and a host whose clock is wrong",
}


@pytest.mark.parametrize("template", SITUATIONS)
def test_a_hint_that_is_pasted_ends_the_trouble(
    r: redis.Redis, redis_url: str, local: Local, tmp_path: Path, template: str
) -> None:
    home = tmp_path / "it's a $HOME"
    home.mkdir()
    try:
        SITUATIONS[template](Desk(r, Runner(redis_url, home, policy=None), local, template))
    finally:
        r.flushall()


def test_these_are_all_the_hints() -> None:
    assert set(templates("describe")) == {*SITUATIONS, *ELSEWHERE}


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["a-note", "who=it's me", "--dry-run"], """a-note=VALUE 'who=it'"'"'s me' --dry-run"""),
        (["a note", "who=me"], "FIELD=VALUE who=me"),
        (["--dry-run"], "--dry-run FIELD=VALUE"),
    ],
)
def test_the_whole_command_line_of_set_is_kept(
    r: redis.Redis, run: Runner, local: Local, typed: list[str], hint: str
) -> None:
    local(SCRIPT)
    done = run("set", "t", "1", *typed)
    assert (done.code, hint_of(done.err)) == (64, f"sandboxrun set t 1 {hint}")
    words = {word: value for word, value in (("FIELD", "greeting"), ("VALUE", "hello")) if word in hint}
    pasted = paste(hint_of(done.err), run.env, run.home, **words)
    assert pasted.returncode == 0 and "hello" in pasted.stdout, pasted
    assert ("who" in pasted.stdout, r.hexists("t:1:h", "who")) == ("who" in hint, "--dry-run" not in hint)
