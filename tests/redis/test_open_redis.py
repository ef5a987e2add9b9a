"""A Redis that accepts commands without a password is refused, unless the operator accepts it: in the policy, by an option, or
by the answer to a question at a terminal."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import redis
from runner import Runner
from terminal import at_terminal

from sandboxrun.redis import embedded

ATTACK = """
import os, socket
from urllib.parse import urlsplit

def answers(*commands):
    parts = urlsplit(os.environ["REDIS_URL"])
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as sock:
        reader = sock.makefile("rb")
        found = []
        for command in commands:
            sock.sendall(command.encode() + b"\\r\\n")
            found.append(reader.readline().decode().strip())
        return found

print(*answers("HSET t:1:h allowRead /etc/passwd", "HSET other secret stolen"), sep="\\n")
"""


@pytest.fixture
def open_redis(run: Runner) -> Iterator[redis.Redis]:
    """As it comes: `default` needs no password."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = embedded.find_server()
    with subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    ) as process:
        try:
            run.env["REDIS_URL"] = f"redis://127.0.0.1:{port}"
            client = redis.Redis(port=port, decode_responses=True, retry_on_error=[redis.ConnectionError])
            while True:
                try:
                    client.ping()
                    break
                except (redis.ConnectionError, redis.BusyLoadingError):
                    continue
            run.set_policy(None)
            yield client
            client.close()
        finally:
            process.kill()


def worker(r: redis.Redis, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "worker.py").write_text(ATTACK)
    r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})


def refusal(run: Runner) -> str:
    return f"Redis at {run.env['REDIS_URL']} accepts commands without a password, so a worker could ignore its restricted login"


def section(run: Runner, said: str = "true") -> str:
    return f'[redis."{run.env["REDIS_URL"]}"]\nopen-redis = {said}\n'


def test_it_is_refused_with_what_to_do_and_nothing_runs(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    done = run("t", "1")
    assert (done.code, done.out) == (71, "")
    assert done.err.startswith(f"error: {refusal(run)}\nhint: ")
    assert open_redis.acl_users() == ["default"]
    assert not open_redis.hexists("t:1:h", "pid")
    assert not open_redis.exists("other")
    assert not run.policy.exists()


def test_a_login_of_the_operators_own_does_not_close_it(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    open_redis.acl_setuser(
        "operator", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], commands=["+@all"]
    )
    worker(open_redis, tmp_path)
    run.env["REDIS_URL"] = run.env["REDIS_URL"].replace("//", "//operator:secret@")
    assert run("t", "1").code == 71
    open_redis.config_set("requirepass", "another")
    done = run("t", "1")
    assert (done.code, done.out) == (0, "-NOAUTH Authentication required.\n" * 2)
    open_redis.execute_command("AUTH", "another")
    assert not open_redis.hexists("t:1:h", "allowRead")
    assert not open_redis.exists("other")


@pytest.mark.parametrize("how", ["flag", "policy", "server"])
def test_where_it_is_accepted_that_is_said_and_recorded_and_the_attack_is_real(
    open_redis: redis.Redis, run: Runner, tmp_path, how: str
) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    if how == "policy":
        run.set_policy('[worker."*"]\nopen-redis = true\n')
    if how == "server":
        run.set_policy(section(run))
    done = run("t", "1", *(["--allow-degraded=redis-password"] if how == "flag" else []))
    assert (done.code, done.out) == (0, ":1\n:1\n")
    assert "warning: degraded: without redis-password, the worker can do at Redis whatever anybody can" in done.err
    record = json.loads((run.home / ".local/state/sandboxrun/runs/t:1.json").read_text())
    assert record["degraded"] == ["redis-password"]
    assert open_redis.hget("other", "secret") == "stolen"


@pytest.mark.parametrize("who", ["the user", "the system"])
@pytest.mark.parametrize("where", ["worker", "redis"])
def test_a_policy_file_that_says_no_has_the_last_word(
    open_redis: redis.Redis, run: Runner, tmp_path, who: str, where: str
) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    text = '[worker."*"]\nopen-redis = false\n' if where == "worker" else section(run, "false")
    path = run.policy
    if who == "the system":
        path = tmp_path / "xdg" / "sandboxrun" / "policy.toml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o644)
        run.env["XDG_CONFIG_DIRS"] = str(tmp_path / "xdg")
        run.set_policy(f'[worker."*"]\nopen-redis = true\n{section(run)}')
    else:
        run.set_policy(text + (section(run) if where == "worker" else '[worker."*"]\nopen-redis = true\n'))
    before = run.policy.read_text()
    shown = at_terminal(run.command("t", "1"), run.env, run.home, answer=b"y\n")
    line = (
        f"error: Redis at {run.env['REDIS_URL']} accepts commands without a password, which {path}:2 does not allow\n"
    )
    assert (shown.code, "[y/N]" in shown.text, line in shown.text) == (71, False, True)
    assert run.policy.read_text() == before


def test_another_server_is_not_accepted_with_it(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    run.set_policy('[redis."redis://127.0.0.1:1"]\nopen-redis = true\n')
    assert run("t", "1").code == 71


# --- the question

POLICY = '# mine\n[worker."t"]\r\nlimit-memory = "1G"  # enough\n\n[worker."*"]\npinned = false'


@pytest.mark.parametrize("text", [None, "", POLICY, POLICY + "\n", '[redis."redis://other:1"]\nopen-redis = false\n'])
def test_a_yes_is_recorded_for_this_server_and_asked_once(
    open_redis: redis.Redis, run: Runner, tmp_path, text: str | None
) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    run.set_policy(text)
    shown = at_terminal(run.command("t", "1"), run.env, run.home, answer=b"y\n")
    assert shown.code == 0, shown.text
    assert shown.text.startswith(refusal(run))
    assert f"recorded in {run.policy}: " in shown.text
    assert "degraded: without redis-password, the worker can do at Redis whatever anybody can" in shown.text
    with open(run.policy, newline="") as file:
        written = file.read()
    assert written.startswith(text or "")
    assert written.endswith(section(run))
    assert run.policy.stat().st_mode & 0o777 == 0o600
    assert run.policy.parent.stat().st_mode & 0o077 in (0, 0o055)  # made with 0700, or by the test
    assert [path.name for path in run.policy.parent.iterdir()] == ["policy.toml"]
    open_redis.hdel("t:1:h", "allowRead")  # which the worker has granted itself
    again = at_terminal(run.command("t", "1"), run.env, run.home, answer=b"n\n")
    assert (again.code, "[y/N]" in again.text) == (0, False)
    assert run("other", "1").code == 78  # no hash: the server is no fault any more, of any worker


@pytest.mark.parametrize(
    "answer", [b"\n", b"n\n", b"\x04", b"yess\n", b"\x1b[?1;2cy\n", b"y\x1b[0n\n", b"x" * 300 + b"\n"]
)
def test_anything_else_is_a_no(open_redis: redis.Redis, run: Runner, tmp_path, answer: bytes) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    run.set_policy(POLICY)
    shown = at_terminal(run.command("t", "1"), run.env, run.home, answer=answer)
    assert (shown.code, f"error: {refusal(run)}\nhint: " in shown.text) == (71, True)
    with open(run.policy, newline="") as file:
        assert file.read() == POLICY
    assert not open_redis.exists("other")


def test_what_was_typed_before_the_question_is_no_answer(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    shown = at_terminal(run.command("t", "1"), run.env, run.home, early=b"y\ny\n", answer=b"\n")
    assert (shown.code, shown.text.count("[y/N]")) == (71, 1)
    assert not run.policy.exists()


@pytest.mark.parametrize("without", ["stdin", "stderr"])
def test_without_a_terminal_at_both_nothing_is_asked(
    open_redis: redis.Redis, run: Runner, tmp_path, without: str
) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    shown = at_terminal(run.command("t", "1"), run.env, run.home, early=b"y\n", answer=b"y\n", without=[without])
    assert (shown.code, "[y/N]" in shown.text) == (71, False)
    assert not run.policy.exists()


def test_a_signal_at_the_question_ends_the_run(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    shown = at_terminal(run.command("t", "1"), run.env, run.home, answer=b"\x03")
    assert shown.code == 130
    assert not run.policy.exists()
    assert open_redis.acl_users() == ["default"]


def test_a_symlink_in_a_folder_of_dotfiles_stays_one(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    real = tmp_path / "dotfiles"
    real.mkdir(mode=0o700)
    (real / "policy.toml").write_text(POLICY + "\n")
    (real / "policy.toml").chmod(0o600)
    run.policy.parent.mkdir(parents=True, exist_ok=True)
    run.policy.symlink_to(real / "policy.toml")
    assert at_terminal(run.command("t", "1"), run.env, run.home, answer=b"yes\n").code == 0
    assert run.policy.is_symlink()
    assert (real / "policy.toml").read_text().endswith(section(run))


def test_what_cannot_be_recorded_is_said_and_nothing_runs(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    run.set_policy(f'[redis."{run.env["REDIS_URL"]}"]\n')  # TOML has each section once
    before = run.policy.read_text()
    shown = at_terminal(run.command("t", "1"), run.env, run.home, answer=b"y\n")
    assert (shown.code, run.policy.read_text()) == (78, before)
    assert not open_redis.exists("other")


def test_another_policy_file_is_the_one_that_is_asked_for_and_written(
    open_redis: redis.Redis, run: Runner, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    other = tmp_path / "other.toml"
    other.write_text('[worker."t"]\nlimit-memory = "1G"\n')
    other.chmod(0o600)
    shown = at_terminal(run.command("t", "1", "--policy", str(other)), run.env, run.home, answer=b"y\n")
    assert (shown.code, run.policy.exists(), other.read_text().endswith(section(run))) == (0, False, True)


# --- the commands beside a run


def test_set_asks_before_it_writes(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    change = run.command("set", "t", "1", "requestLimit=1")
    dry = at_terminal([*change, "--dry-run"], run.env, run.home, answer=b"y\n")
    assert (dry.code, "[y/N]" in dry.text, refusal(run) in dry.text, run.policy.exists()) == (0, False, True, False)
    no = at_terminal(change, run.env, run.home, answer=b"n\n")
    assert (no.code, f"warning: {refusal(run)}; sandboxrun t 1 is refused\nhint: " in no.text) == (0, True)
    open_redis.hdel("t:1:h", "requestLimit")
    yes = at_terminal(change, run.env, run.home, answer=b"y\n")
    assert (yes.code, "warning" in yes.text, run.policy.read_text()) == (0, False, section(run))
    assert run("t", "1").code == 0


def test_set_says_it_without_a_terminal(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    worker(open_redis, tmp_path)
    done = run("set", "t", "1", "requestLimit=1")
    assert (done.code, done.err.startswith(f"warning: {refusal(run)}; sandboxrun t 1 is refused\nhint: ")) == (0, True)
    assert json.loads(run("set", "t", "1", "requestLimit=2", "--json").out)["written"]
    run.set_policy('[worker."t"]\nopen-redis = true\n')
    assert run("set", "t", "1", "requestLimit=3").err == ""
    assert "without a password" in run("set", "u", "1", f"url={tmp_path}", "version=local").err


def test_dev_asks_before_it_starts_the_worker(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "greeter"
    folder.mkdir()
    (folder / "worker.py").write_text("print('it runs', flush=True)\nimport time\ntime.sleep(60)\n")
    dev = run.command("dev", str(folder))
    no = at_terminal(dev, run.env, run.home, answer=b"n\n")
    assert (no.code, f"error: {refusal(run)}\nhint: " in no.text, "it runs" in no.text) == (71, True, False)
    assert open_redis.keys() == []
    process = pexpect.spawn(dev[0], dev[1:], env=run.env, cwd=str(run.home), timeout=60, encoding="utf-8")
    process.expect_exact("[y/N] ")
    process.sendline("y")
    process.expect_exact("recorded in")
    process.expect_exact("it runs")
    process.expect_exact("greeter>")
    process.sendline("exit")
    process.expect(pexpect.EOF)
    process.close()
    assert (process.exitstatus, run.policy.read_text()) == (0, section(run))


def test_doctor_agrees(open_redis: redis.Redis, run: Runner) -> None:
    found = {}
    for policy in (None, section(run), section(run, "false"), '[worker."t"]\nopen-redis = true\n'):
        run.set_policy(policy)
        findings = json.loads(run("doctor", "--json").out)["findings"]
        (found[policy],) = [each for each in findings if "without a password" in each["text"]]
    assert [each["level"] for each in found.values()] == ["FAILS", "note", "FAILS", "note"]
    assert "\n".join(found[None]["hint"]).endswith(f"<<'END'\n\n{section(run)}END")
    assert f"{run.policy}:2 accepts that" in found[section(run)]["text"]
    assert f"{run.policy}:2 does not allow that" in found[section(run, "false")]["text"]


def test_the_demo_asks_for_it(open_redis: redis.Redis, run: Runner) -> None:
    # Another demo that runs meanwhile may take the usual port of the debugger, once this one has found it free.
    options = "--inspect=127.0.0.1:0"
    env = {**run.env, "VENV": sys.prefix, "DEMO_STATE": str(run.home), "WORKER_DENO_OPTIONS": options}
    demo = str(Path(__file__).parents[2] / "demo" / "run.sh")
    no = at_terminal([demo], env, run.home, answer=b"n\n")
    assert (no.code, f"error: {refusal(run)}\nhint: " in no.text) == (1, True)
    assert open_redis.keys() == []
    yes = at_terminal([demo], env, run.home, answer=b"y\n")
    assert (yes.code, "Hello, world!" in yes.text) == (0, True), yes.text
    assert run.policy.read_text() == section(run)


# --- attacks: the policy is the operator's alone

WRITE_POLICY = """
import os
for act in (
    lambda: open({policy!r}, "a").write("x"),
    lambda: os.replace({own!r}, {policy!r}),
    lambda: os.symlink({own!r}, {policy!r}),
    lambda: os.rename({folder!r}, {folder!r} + "2"),
    lambda: os.mkdir({folder!r}),
):
    try:
        act()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("text", [None, "there"])
def test_no_grant_makes_the_policy_writable(open_redis: redis.Redis, run: Runner, tmp_path, text: str | None) -> None:  # type: ignore[no-untyped-def]
    run.set_policy(POLICY if text else None)
    folder = run.policy.parent
    for granted in (run.home, folder.parent, folder, run.policy):
        own = tmp_path / "mine"
        own.write_text("x")
        (tmp_path / "worker.py").write_text(
            WRITE_POLICY.format(policy=str(run.policy), own=str(own), folder=str(folder))
        )
        open_redis.hset("t:1:h", mapping={"url": str(tmp_path / "worker.py"), "version": "local"})
        done = run("t", "1", "--allow-degraded=redis-password", f"--allow-write={granted}")
        assert "done" not in done.out, (granted, done)
        assert run.policy.exists() == bool(text)
    if text:
        with open(run.policy, newline="") as file:
            assert file.read() == POLICY


PRINTS = """
import fcntl, sys, termios, time
with open({printed!r}, "w") as file:
    while True:
        print("y\\n\\x05\\x1b[c\\x1b[21ty", flush=True)
        print("y", file=sys.stderr, flush=True)
        for fd in (0, 1, 2):
            try:
                fcntl.ioctl(fd, termios.TIOCSTI, b"y")
            except OSError as error:
                pass
        file.write("x")
        file.flush()
        time.sleep(0.02)
"""


def test_what_a_worker_prints_answers_nothing(open_redis: redis.Redis, run: Runner, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A worker of the same terminal, in the background, prints answers and asks the terminal to send something back."""
    (tmp_path / "worker.py").write_text(PRINTS.format(printed=str(tmp_path / "printed")))
    open_redis.hset("t:1:h", mapping={"url": str(tmp_path / "worker.py"), "version": "local"})
    open_redis.hset("t:2:h", mapping={"url": str(tmp_path / "worker.py"), "version": "local"})
    first = " ".join(run.command("t", "1", "--allow-degraded=redis-password"))
    second = " ".join(run.command("t", "2"))
    script = f"set -m; {first} </dev/null & while ! [ -s {tmp_path}/printed ]; do sleep 0.1; done; {second}; code=$?; kill %1; exit $code"
    command = ["/bin/sh", "-c", script.replace(first, f"{first} --allow-write={tmp_path}/printed")]
    (tmp_path / "printed").touch()
    shown = at_terminal(command, run.env, run.home, answer=b"\n")
    assert shown.code == 71, shown.text
    assert not run.policy.exists()
