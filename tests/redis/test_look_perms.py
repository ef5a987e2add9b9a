"""`sandboxrun perms`: its answer is what the worker finds, and the command that it names brings what was asked for."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Runner
from scripts import script

Local = Callable[..., Path]
SCRIPT = "print('ran')\n"


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Of two listeners on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        yield [a.getsockname()[1], b.getsockname()[1]]


def asked(run: Runner, *args: str) -> list[dict[str, Any]]:
    done = run("perms", "t", "1", *args, "--json")
    found: list[dict[str, Any]] = json.loads(done.out)
    assert done.code == (0 if all(one["allowed"] for one in found) else 77)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_the_answer_is_what_the_worker_finds(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path, ports: list[int], redis_url: str
) -> None:
    """A name that was resolved counts for its address from then on: what is asked by address comes first."""
    data = tmp_path / "data"
    for folder in ("open/kept", "open/closed", "plain", "both"):
        (data / folder).mkdir(parents=True)
        (data / folder / "file").write_text("x")
    (data / "link").symlink_to(data / "plain")
    run.env["COLOUR"] = run.env["SHAPE"] = "x"
    mine = free_port()
    redis_port = redis_url.rpartition(":")[2].partition("/")[0]
    questions = [
        *(("--net", f"127.0.0.1:{port}") for port in (*ports, redis_port)), ("--net", f"localhost:{ports[0]}"), ("--net", f"localhost:{ports[1]}"),
        *(("--listen", f"127.0.0.1:{port}") for port in (mine, free_port())),
        *(("--read", str(data / name)) for name in (
            "open", "open/kept", "open/kept/file", "open/closed", "open/closed/file", "plain/file", "link/file", "both/file",
        )),
        *(("--write", str(data / name)) for name in ("plain", "plain/file", "open/kept", "both", "both/file", "link/file")),
        ("--read", "/etc/passwd"), ("--read", "/usr/lib"), ("--write", "/usr/lib"), ("--write", str(data)),
        ("--run", "true"), ("--run", "/bin/true"), ("--run", "false-program"), ("--run", "ls"),
        *(("--env", name) for name in ("COLOUR", "SHAPE", "HOME")),
        *(("--redis-keys", text) for text in (
            "chat:1", "%R~conf:1", "%W~conf:1", "conf:1", "%W~log:1", "%R~log:1", "half:1", "other", "gone:1", "%R~t:1:h",
            "%W~t:1:h", "%W~res:x", "%R~res:x", "+pubsub:news", "+pubsub:other", "+eval",
        )),
        *(("--call", type_) for type_ in ("price", "bank", "cash")),
    ]  # fmt: skip
    folder = local(
        script("questions"),
        allowNet=f"127.0.0.1:{ports[0]},localhost:{ports[1]}",
        allowListen=f"127.0.0.1:{mine}",
        allowRead=f"{data}/open,{data}/both,{data}/plain",
        denyRead=f"{data}/open/closed",
        allowWrite=f"{data}/plain,{data}/both",
        denyWrite=f"{data}/both/file",
        allowRun="true",
        allowEnv="COLOUR,SHAPE",
        denyEnv="SHAPE",
        allowRedis="chat:*,%R~conf:*,%W~log:*,%R~half:*,%W~half:*,gone:*,+pubsub:news",
        denyRedis="gone:*",
        allowCall="price,bank",
        denyCall="bank",
    )
    (folder / "ask.json").write_text(json.dumps(questions))
    done = run("t", "1")
    assert done.code == 0, done.err
    found = asked(run, *(word for question in questions for word in question))
    # perms takes them kind by kind.
    order = ["--net", "--read", "--write", "--run", "--listen", "--env", "--redis-keys", "--call"]
    worked = dict(zip(questions, json.loads(done.out), strict=True))
    expected = [worked[question] for question in sorted(questions, key=lambda question: order.index(question[0]))]
    assert [(one["question"], one["allowed"]) for one in found] == [
        (one["question"], expected[n]) for n, one in enumerate(found)
    ]
    assert 15 < sum(expected) < len(expected) - 15


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--net", "b.example:443"),
        ("--net", "[2606:4700::1]:443"),
        ("--net", "10.1.2.3:80"),
        ("--read", "/etc/hosts"),
        ("--run", "ls"),
        ("--listen", "127.0.0.1:8000"),
        ("--env", "TZ"),
        ("--redis-keys", "log:*"),
        ("--redis-keys", "+eval"),
        ("--call", "price"),
    ],
)
def test_the_command_that_it_names_grants_it_and_keeps_the_rest(
    r: redis.Redis, run: Runner, local: Local, flag: str, value: str
) -> None:
    r.hset("t:h", "allowNet", "a.example")
    local(SCRIPT, allowRedis="chat:*", denyNet="10.0.0.0/8,c.example")
    before = run("perms", "t", "1", "--net", "a.example:1", "--redis-keys", "chat:1")
    (one,) = asked(run, flag, value)
    assert one["verdict"] == ("denied" if value.startswith("10.") else "missing")
    for _ in range(2):
        (one,) = asked(run, flag, value)
        if one["allowed"]:
            break
        words = shlex.split(one["fix"])
        assert words[:4] == ["sandboxrun", "set", "t", "1"]
        assert run(*words[1:]).code == 0
    (one,) = asked(run, flag, value)
    assert one["allowed"], one
    after = run("perms", "t", "1", "--net", "a.example:1", "--redis-keys", "chat:1")
    assert [done.out.count("yes  ") for done in (before, after)] == [2, 2]
    assert run("t", "1").out == "ran\n"


def test_which_entry_of_which_hash_decides(r: redis.Redis, run: Runner, local: Local) -> None:
    r.hset("t:h", "allowNet", "*.example.com:443")
    local(SCRIPT, denyNet="evil.example.com", options="--allow-env=TZ")
    out = run(
        "perms",
        "t",
        "1",
        "--net",
        "api.example.com:443",
        "--net",
        "evil.example.com:443",
        "--net",
        "a.b:1",
        "--env",
        "TZ",
    ).out
    assert out == (
        "yes  net api.example.com:443: allowed by *.example.com:443 in field allowNet of t:h (as far as it resolves to public "
        "addresses; others have to be listed themselves)\n"
        "no  net evil.example.com:443: denied by evil.example.com in field denyNet of t:1:h\n"
        "     change it with: sandboxrun set t 1 denyNet=\n"
        "no  net a.b:1: not granted: no entry of allowNet covers it\n"
        "     grant it with: sandboxrun set t 1 'allowNet=*.example.com:443,a.b:1'\n"
        "yes  env TZ: allowed by TZ in --allow-env in field options of t:1:h (but it is not set here)\n"
    )


def test_what_the_policy_refuses_is_said_with_its_line(run: Runner, local: Local) -> None:
    run.set_policy('[worker."t"]\nallow-net = ["a.example"]\n')
    local(SCRIPT, allowNet="a.example,b.example", allowEnv="TZ")
    a, b, c, tz = asked(run, "--net", "a.example:1", "--net", "b.example:1", "--net", "c.example:1", "--env", "TZ")
    assert (a["verdict"], b["verdict"], c["verdict"], tz["verdict"]) == ("allowed", "refused", "missing", "refused")
    assert f"{run.policy}:2 does not allow" in b["policy"]
    assert f"{run.policy}:2 does not allow" in c["policy"]
    assert "the default policy does not allow" in tz["policy"]
    done = run("perms", "t", "1", "--net", "a.example:1")
    assert done.code == 0
    assert done.err.startswith("warning: the worker would not start: field allowNet of t:1:h has 'b.example'")


def test_without_a_question_all_is_listed_in_words(run: Runner, local: Local, redis_url: str) -> None:
    local(
        SCRIPT, allowNet="*,10.0.0.1,*.a.example:1", allowRead="/etc/hosts", allowWrite="/srv", allowRun="true",
        allowListen="0.0.0.0:0,[::1]:1", allowEnv="TZ", allowRedis="a:*,%R~b,%W~c,+pubsub:d,+eval", allowCall="price",
    )  # fmt: skip
    done = run("perms", "t", "1")
    assert done.code == 0
    for line in (
        "connect to every public address, any port",
        "connect to 10.0.0.1, any port",
        "connect to every name below a.example, port 1",
        "read /etc/hosts and what is below it",
        "write, make and remove /srv and what is below it",
        "run the program true, in the same sandbox",
        "listen on all IPv4 addresses of this machine, a port that the kernel chooses, from wherever it can be reached",
        "listen on ::1, port 1, from this machine only",
        "see the variable TZ of the operator's environment",
        "read and write the Redis keys a:*",
        "read the Redis keys b",
        "write the Redis keys c",
        "send requests to workers of the type price, and read their replies",
        "publish and subscribe to the Redis channel d",
        "use the Redis command eval",
    ):
        assert f"  {line}  (allow" in done.out
    assert redis_url.rpartition("@")[2] in done.out
    assert "every worker has\n" in done.out
    found = json.loads(run("perms", "t", "1", "--json").out)
    assert list(found) == ["worker", "key", "services", "allow", "deny", "always", "policy"]


def test_a_hash_that_cannot_be_read_has_no_answer(r: redis.Redis, run: Runner, local: Local) -> None:
    local(SCRIPT, allowFoo="\x1b[2J")
    for args in ((), ("--net", "a.example:1")):
        done = run("perms", "t", "1", *args)
        assert (done.code, done.out) == (78, "")
        assert done.err.startswith("error: field allowFoo of t:1:h is not a permission")
    r.delete("t:1:h")
    assert "sandboxrun set t 1 url=URL" in run("perms", "t", "1").err


def test_hostile_entries_are_shown_escaped(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    nasty = tmp_path / "a\x1b[2J\u202eb"
    nasty.mkdir()
    local(SCRIPT, allowRead=str(nasty), options="--allow-env=TZ")
    for args in ((), ("--read", str(nasty / "\x1b[31m")), ("--write", str(nasty))):
        done = run("perms", "t", "1", *args)
        assert "\\x1b[2J\\u202e" in done.out
        assert all(c.isprintable() or c == "\n" for c in done.out + done.err)
