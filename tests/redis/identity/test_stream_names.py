"""Names of streams and consumers as Redis's rules read them: used as they are, or refused by name."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from logins import Probe, Server, write_worker
from runner import Runner

from sandboxrun.config.fields import parse_loop
from sandboxrun.errors import ConfigError

ECHO = """
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"text": "done"}

worker.run()
"""
QUOTES = "\"'"
OTHERS = [c for c in string.punctuation if c not in QUOTES]


@pytest.mark.parametrize("field", ["requestStream", "responseStream"])
@pytest.mark.parametrize("name", ['t:a"b:x', "t:it's:x", 't:"a":x', "t:\\'b:x", "'t:x", 't:x"'])
def test_a_quote_in_the_name_of_a_stream_is_refused_with_field_and_character(
    server: Server, run: Runner, tmp_path: Path, field: str, name: str
) -> None:
    write_worker(server, tmp_path, ECHO, **{field: name})
    done = run("t", "1")
    quote = next(c for c in name if c in QUOTES)
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith(f"error: field {field} of t:1:h has {quote}, ")
    assert len(done.err.partition("hint: ")[0].splitlines()) == 1


@pytest.mark.parametrize("bad", ["\0", "\n", "\t", " ", "\x7f", "\xa0", "\u2028"])
@pytest.mark.parametrize("field", ["requestStream", "responseStream", "consumerId"])
def test_what_splits_a_rule_is_refused_in_every_name(field: str, bad: str) -> None:
    with pytest.raises(ConfigError, match=f"field {field} of t:1:h"):
        parse_loop({field: f"t:a{bad}b:x"}, "t", "1")


@pytest.mark.parametrize("at", range(0, len(OTHERS), 8))
def test_any_other_character_names_one_stream_and_no_other(server: Server, probe: Probe, at: int) -> None:
    for char in [*OTHERS[at : at + 8], *(["é", "日", "\\\\"] if at == 0 else [])]:
        name = f"t:a{char}b:x"
        server.r.xadd(name, {"data": "canary"})
        server.r.xadd("t:aXb:x", {"data": "canary"})
        own, other, reply = probe(
            ("XLEN", name), ("XLEN", "t:aXb:x"), ("XADD", "t:res:x", "*", "a", "b"), requestStream=name
        )
        assert own == ":1", char
        assert "-NOPERM" in other, char
        assert not reply.startswith("-"), char


@pytest.mark.parametrize("consumer", ["it's", '"a"', "a*b", "[x]", "(y)", "~z", "%R~w", "é"])
def test_a_consumer_may_have_any_printable_name(server: Server, run: Runner, tmp_path: Path, consumer: str) -> None:
    write_worker(server, tmp_path, ECHO, consumerId=consumer, requestLimit="1")
    server.r.xadd("t:req:x", {"ref": "r1", "type": "t", "data": json.dumps({})})
    done = run("t", "1")
    assert done.code == 0, done.err
    assert json.loads(server.r.lpop("res:r1"))["code"] == 200
    assert [found["name"] for found in server.r.xinfo_consumers("t:req:x", "worker")] == [consumer]


@pytest.mark.parametrize("entry", ['a"b', "it's", "a b", "a\\b", "[ab]", "a^b", "%R~a(b", "+pubsub:a'b"])
def test_a_pattern_of_allow_redis_is_refused_with_the_entry(
    server: Server, run: Runner, tmp_path: Path, entry: str
) -> None:
    write_worker(server, tmp_path, ECHO, allowRedis=entry)
    done = run("t", "1")
    assert done.code == 78
    assert "allowRedis" in done.err and repr(entry)[1:-1].strip("'\"")[:2] in done.err
    assert len(done.err.splitlines()) == 1
