"""Completion, in real shells, and what they ask for it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from pathlib import Path

import pexpect
import pytest
import redis
from runner import Runner

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.cli.parser import captured


@pytest.fixture
def workers(r: redis.Redis, run: Runner) -> Runner:
    for key in ("demo-worker:1:h", "demo-worker:two:h", "other:1:h"):
        r.hset(key, "url", "/x")
    return run


def asked(run: Runner, *words: str) -> list[str]:
    done = run("completion", "--words", *words)
    assert (done.code, done.err) == (0, "")
    return [line.partition("\t")[0] for line in done.out.splitlines()]


def test_every_command_has_a_parser_with_an_example() -> None:
    for name in COMMANDS:
        parser = captured(importlib.import_module(f"sandboxrun.cli.{name}").main)
        assert parser.prog.startswith("sandboxrun")
    for name in ("ps", "stop", "logs", "doctor", "completion"):
        parser = captured(importlib.import_module(f"sandboxrun.cli.{name}").main)
        assert "examples:" in (parser.epilog or "")


def test_commands_types_ids_options_and_fields(workers: Runner) -> None:
    assert set(asked(workers, "")) == {*COMMANDS, "demo-worker", "other"}
    assert asked(workers, "st") == ["stream", "start", "stop"]
    assert asked(workers, "demo-worker", "") == ["1", "two"]
    assert asked(workers, "stop", "demo-worker", "1", "t") == ["two"]
    assert asked(workers, "logs", "demo-worker", "t") == ["two"]
    assert asked(workers, "ps", "--h") == ["--help", "--here"]
    assert "--allow-net" in asked(workers, "demo-worker", "1", "--allow-n")
    assert asked(workers, "--reload", "demo-worker", "1", "--rel") == []
    assert asked(workers, "set", "demo-worker", "1", "allowN") == ["allowNet="]
    assert asked(workers, "completion", "z") == ["zsh"]
    assert asked(workers, "help", "per") == ["perms"]
    assert asked(workers, "stream", "demo-worker", "tr") == ["trim"]
    assert asked(workers, "dead", "demo-worker", "show", "") == []
    assert asked(workers, "audit", "") == [":files"]
    assert asked(workers, "demo-worker", "1", "--policy", "x") == [":files"]
    assert asked(workers, "stop", "demo-worker", "--timeout", "") == []
    assert asked(workers, "cache", "--remove", "") == []
    blobs = workers.home / ".cache/sandboxrun/blobs"
    blobs.mkdir(parents=True)
    for digit in "ab":
        (blobs / (digit * 64)).write_text("")
    assert asked(workers, "cache", "--remove", "") == ["a" * 64, "b" * 64]
    assert asked(workers, "cache", "--remove", "b") == ["b" * 64]
    assert asked(workers, "ps", "--redis", "redis://127.0.0.1:1", "") == []


def test_without_redis_it_is_what_ran_here(workers: Runner, local) -> None:  # type: ignore[no-untyped-def]
    local("print('ran')")
    assert workers("t", "1").code == 0
    assert asked(workers, "ps", "--redis", "redis://127.0.0.1:1", "") == ["t"]
    assert asked(workers, "ps", "--redis", "nonsense", "") == ["t"]


def test_odd_words_end_nothing(workers: Runner) -> None:
    for words in (
        [],
        ["--"],
        ["--", "--", ""],
        ["\x1b[2J", ""],
        ["stop", "../x", ""],
        ["x" * 5000, "-"],
        ["--help", ""],
    ):
        asked(workers, *words)
    done = workers("completion", "tcsh")
    assert done.code == 64 and done.err.endswith("\nhint: sandboxrun completion --help\n")


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} is installed")
    return path


def test_bash_completes_at_a_tab(workers: Runner, tmp_path: Path) -> None:
    env = {**workers.env, "PATH": f"{Path(workers.command()[0]).parent}:{workers.env['PATH']}", "TERM": "dumb"}
    (workers.home / "file.log").write_text("")
    rc = tmp_path / "rc"
    rc.write_text('PS1="$ "\nbind "set enable-bracketed-paste off"\neval "$(sandboxrun completion bash)"\necho up\n')
    shell = pexpect.spawn(
        program("bash"), ["--noprofile", "--rcfile", str(rc), "-i"],
        env=env, cwd=str(workers.home), timeout=30, encoding="utf-8",
    )  # fmt: skip
    try:
        shell.expect_exact("up\r\n$ ")
        for typed, completed in [
            ("sandboxrun log\t", "sandboxrun logs "),
            ("sandboxrun logs dem\t", "sandboxrun logs demo-worker "),
            ("sandboxrun stop demo-worker tw\t", "sandboxrun stop demo-worker two "),
            ("sandboxrun set other 1 sha2\t", "sandboxrun set other 1 sha256="),
            ("sandboxrun audit fi\t", "sandboxrun audit file.log "),
        ]:
            shell.send(typed)
            shell.expect_exact(completed)
            shell.sendcontrol("u")
    finally:
        shell.close(force=True)


def test_zsh_completes_at_a_tab(workers: Runner, tmp_path: Path) -> None:
    env = {**workers.env, "PATH": f"{Path(workers.command()[0]).parent}:{workers.env['PATH']}", "TERM": "vt100"}
    (tmp_path / ".zshrc").write_text(
        'PS1="$ "\nautoload -U compinit; compinit -u -D\neval "$(sandboxrun completion zsh)"\necho up\n'
    )
    shell = pexpect.spawn(
        program("zsh"),
        ["-i"],
        env={**env, "ZDOTDIR": str(tmp_path)},
        cwd=str(workers.home),
        timeout=30,
        encoding="utf-8",
    )
    try:
        shell.expect_exact("up")
        for typed, added in [
            ("sandboxrun doc\t", "tor"),
            ("sandboxrun stop demo-worker tw\t", "o"),
            ("sandboxrun set other 1 sha2\t", "56="),
        ]:
            shell.send(typed)
            shell.expect_exact(added)
            shell.sendcontrol("u")
    finally:
        shell.close(force=True)


def test_fish_completes(workers: Runner) -> None:
    env = {**workers.env, "PATH": f"{Path(workers.command()[0]).parent}:{workers.env['PATH']}"}
    for typed, found in [
        ("sandboxrun doc", ["doctor"]),
        ("sandboxrun stop demo-worker ", ["1", "two"]),
        ("sandboxrun set other 1 sha2", ["sha256="]),
    ]:
        script = f"sandboxrun completion fish | source; complete -C '{typed}'"
        done = subprocess.run([program("fish"), "-c", script], env=env, capture_output=True, text=True, timeout=60)
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == found, done.stderr


def test_the_scripts_are_syntax_of_their_shells(run: Runner) -> None:
    done = run("completion", "bash")
    assert done.code == 0
    subprocess.run(["bash", "-n"], input=done.out, text=True, check=True, env={"PATH": os.environ["PATH"]})
