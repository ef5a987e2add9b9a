"""Mistakes on the command lines and in the files of agents: each is said in one line, with what was probably meant."""

from __future__ import annotations

import os
import socket

import pytest
import redis
from hints import DRAIN, hint_of, paste
from runner import Runner

from sandboxrun.errors import ConfigError
from sandboxrun.host import agentfile
from sandboxrun.host.folders import Folders


def configured(r: redis.Redis, run: Runner, key: str = "greeter:h") -> None:
    (run.home / "script").mkdir()
    (run.home / "script" / "worker.py").write_text("print('ran')\n")
    r.hset(key, mapping={"url": str(run.home / "script"), "version": "local"})


@pytest.mark.parametrize("key", ["greeter:h", "greeter:7:h"])
@pytest.mark.parametrize("words", [("scale", "3"), ("scale", "0"), ("start", "7"), ("start", "7", "8"), ("agent",)])
def test_a_misspelt_type_is_refused_and_changes_nothing(
    r: redis.Redis, run: Runner, key: str, words: tuple[str, ...]
) -> None:
    configured(r, run, key)
    command, *rest = words
    done = run(command, "gretter", *rest)
    assert done.code == 78, done
    assert "neither gretter:h nor gretter:" in done.err and "; did you mean greeter?\n" in done.err
    assert hint_of(done.err) == " ".join(["sandboxrun", command, "greeter", *rest])
    assert r.keys() == [key]


def test_a_type_that_is_like_no_other_is_refused_too(r: redis.Redis, run: Runner) -> None:
    configured(r, run)
    done = run("start", "zebra", "1")
    assert done.code == 78
    assert hint_of(done.err) == "sandboxrun set zebra url=URL version=VERSION"
    assert r.keys() == ["greeter:h"]


def test_an_id_without_a_url_is_refused_although_another_has_one(r: redis.Redis, run: Runner) -> None:
    configured(r, run, "greeter:1:h")
    done = run("start", "greeter", "1", "2")
    assert (done.code, "neither greeter:h nor greeter:2:h has a url" in done.err) == (78, True)
    assert run("start", "greeter", "1").code == 0


def test_what_runs_can_be_scaled_down_after_its_hash_is_gone(r: redis.Redis, run: Runner) -> None:
    r.rpush("old:start:q", "1")
    assert run("scale", "old", "0").out == "removed 1\nold has count 0\n"


FAULTS = {
    'types = "t"': "types of FILE is no list",
    'types = ["T"]': "types of FILE: worker type 'T' is not valid",
    "most-workers = 401": "most-workers of FILE is '401': expected a number from 1 to 400",
    'most-workers = "5"': "most-workers of FILE is the text '5': expected a number, without quotes",
    'spares = "2"': "spares of FILE is the text '2'",
    "spares = true": "spares of FILE is 'True'",
    'memory = "much"': "memory of FILE",
    'page = "9300x"': "page of FILE is '9300x': expected HOST:PORT",
    'page = "0.0.0.0:9300"': "page of FILE is '0.0.0.0:9300', and the page listens on loopback only",
    "page = 9300": "page of FILE is '9300': expected a text, in quotes",
    'metrics-file = "x.prom"': "metrics-file of FILE is 'x.prom': expected an absolute path",
    "other = 1": "FILE has 'other': expected one of types, most-workers",
    "most-worker = 1": "did you mean most-workers?",
    "a.b.c.d.e.f.g = 1": "FILE:1 has more than 4 dots",
    "types = [": "FILE is not TOML",
}


def test_a_fault_of_the_file_is_named_as_the_files(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.policy.with_name("agent.toml")
    monkeypatch.setenv("HOME", str(run.home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for text, said in FAULTS.items():
        path.write_text(text + "\n")
        with pytest.raises(ConfigError) as caught:
            agentfile.read(Folders.of_user())
        found = str(caught.value)
        assert said.replace("FILE", str(path)) in found and "--" not in found
        assert (caught.value.exit_code, caught.value.hint) == (78, ())
    done = run("agent", "t")
    assert (done.code, done.err) == (78, f"error: {found}\n")


def test_the_hint_for_a_taken_port_names_a_free_one(r: redis.Redis, run: Runner) -> None:
    configured(r, run)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        done = run("agent", "greeter", f"--page=127.0.0.1:{port}", "--most", "2")
        assert (done.code, f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.err) == (78, True)
        hint = hint_of(done.err)
        assert hint.startswith("sandboxrun agent greeter --most 2 --page 127.0.0.1:")
        pasted = paste(f"{hint} & {DRAIN}", run.env, run.home)
        assert (pasted.returncode, "drains" in pasted.stdout) == (0, True), pasted


def test_nobody_is_told_to_change_a_file_of_another_user() -> None:
    """Whoever does not own the key file cannot change its mode: the hint would fail."""
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)
        with pytest.raises(ConfigError, match="/etc/passwd can be read by others") as caught:
            agentfile.key_lines(["/etc/passwd"], {})
    finally:
        os.seteuid(user)
    assert caught.value.hint == ()
