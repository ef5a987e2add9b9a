"""A debugger inside the sandbox: attached by a real client, and only where the operator lets it."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import dap
import pytest
import redis
from raw_host import RawHost
from runner import Runner

from sandboxrun import client

Local = Callable[..., Path]
HELLO = """\
import sys
from sandboxrun import worker

@worker.handler
def handle(request):
    name = request.data["name"]
    text = f"hello {name}"
    return {"text": text}

print("begun", "debugpy" in sys.modules, file=sys.stderr)
worker.run()
"""
LINE = 7  # `text` is not set yet
MAY_INSPECT = '[worker."t"]\ninspect = true\n'


def line(process: subprocess.Popen[bytes], pattern: str) -> re.Match[str]:
    """The next line of its standard error that has this."""
    assert process.stderr is not None
    seen = []
    for raw in process.stderr:
        seen.append(raw.decode())
        if found := re.search(pattern, seen[-1]):
            return found
    raise AssertionError(seen)


def listening(process: subprocess.Popen[bytes]) -> int:
    return int(line(process, r"^Debugger listening on 127\.0\.0\.1:(\d+)")[1])


def debugged_call(redis_url: str, session: dap.Session, name: str) -> tuple[int, dict[str, str], object]:
    """Send a request that meets the breakpoint; the line where it stopped, the variables there, and the reply."""
    replies: list[dict[str, object]] = []
    caller = threading.Thread(
        target=lambda: replies.append(client.call("t", {"name": name}, timeout=dap.SECONDS, url=redis_url))
    )
    caller.start()
    thread, at, found = session.locals()
    assert not replies
    session.ask("continue", threadId=thread)
    caller.join()
    return at, found, replies[0]["text"]


def test_an_editor_attaches_stops_a_request_reads_a_variable_and_goes_on(
    r: redis.Redis, redis_url: str, run: Runner, local: Local
) -> None:
    script = local(HELLO) / "worker.py"
    run.set_policy(None)
    with run.start("t", "1", "--inspect=0") as process:
        port = listening(process)
        assert line(process, "begun (.*)")[1] == "True"
        assert client.call("t", {"name": "nobody"}, timeout=dap.SECONDS, url=redis_url)["text"] == "hello nobody"
        for name in ("you", "again"):  # and once more, by a new session
            with dap.session("127.0.0.1", port) as session:
                session.attach(script, LINE)
                at, found, text = debugged_call(redis_url, session, name)
                assert (at, found["name"], text) == (LINE, f"'{name}'", f"hello {name}")
                assert "text" not in found
                session.ask("disconnect", terminateDebuggee=False)
        assert client.call("t", {"name": "free"}, timeout=dap.SECONDS, url=redis_url)["text"] == "hello free"
        process.terminate()
        assert process.wait(dap.SECONDS) == 0


HELPER = "def hello(name):\n    text = f'hello {name}'\n    return text\n"


@pytest.mark.parametrize("is_fetched", [False, True])
def test_a_breakpoint_in_a_file_beside_the_script_stops_too(
    r: redis.Redis, redis_url: str, run: Runner, local: Local, host: RawHost, is_fetched: bool
) -> None:
    digest = hashlib.sha256(HELPER.encode()).hexdigest()
    block = f'# /// script\n# [tool.sandboxrun]\n# files = {{ "parts.py" = "sha256:{digest}" }}\n# ///\n'
    source = block + HELLO.replace('f"hello {name}"', "parts.hello(name)").replace("import sys", "import sys, parts")
    folder = local(source)
    (folder / "parts.py").write_text(HELPER)
    if is_fetched:
        host.files |= {"/v1.0.0/worker.py": source, "/v1.0.0/parts.py": HELPER}
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/worker.py", "version": "v1.0.0"})
    run.set_policy(None)
    with run.start("t", "1", "--inspect=0") as process:
        port = listening(process)
        line(process, "begun (.*)")
        parts = folder / "parts.py"
        if is_fetched:
            [parts] = (run.home / ".cache/sandboxrun/trees").glob("*/parts.py")
        with dap.session("127.0.0.1", port) as session:
            session.attach(parts, 3)
            at, found, text = debugged_call(redis_url, session, "you")
            assert (at, found["text"], text) == (3, "'hello you'", "hello you")


def test_what_runs_in_the_debugger_is_in_the_sandbox(
    r: redis.Redis, redis_url: str, run: Runner, local: Local, tmp_path: Path
) -> None:
    script, private = local(HELLO) / "worker.py", tmp_path / "private"
    private.write_text("private")
    with run.start("t", "1", "--inspect=0") as process:
        port = listening(process)
        with dap.session("127.0.0.1", port) as session:
            session.attach(script, LINE)
            caller = threading.Thread(
                target=lambda: client.call("t", {"name": "you"}, timeout=dap.SECONDS, url=redis_url)
            )
            caller.start()
            thread = session.event("stopped")["threadId"]
            frame = session.ask("stackTrace", threadId=thread)["stackFrames"][0]["id"]
            for code, error in (
                (f"open({str(private)!r}).read()", "PermissionError: [Errno 13]"),
                ("__import__('socket').create_server(('0.0.0.0', 0))", "PermissionError: [Errno 13]"),
                ("__import__('os').fork()", "PermissionError: [Errno 1]"),
            ):
                number = session.send("evaluate", expression=code, frameId=frame, context="repl")
                answer = session.raw_answer(number)
                assert error in str(answer), answer
            assert "'you'" in str(session.ask("evaluate", expression="name", frameId=frame, context="repl"))
            session.ask("continue", threadId=thread)
            caller.join()


def test_inspect_wait_begins_when_a_client_has_attached(
    r: redis.Redis, redis_url: str, run: Runner, local: Local
) -> None:
    script = local(HELLO, options="--inspect-wait=127.0.0.1:0") / "worker.py"
    run.set_policy(MAY_INSPECT)
    with run.start("t", "1") as process:
        port = listening(process)
        with dap.session("127.0.0.1", port) as session:
            session.attach(script, 10)
            assert session.locals()[1] == 10  # the print, which had waited


@pytest.mark.parametrize(
    ("policy", "option", "why"),
    [
        (None, "--inspect", "the default policy does not allow"),
        ('[worker."t"]\ninspect = false\n', "--inspect", "policy.toml:2 does not allow"),
        (MAY_INSPECT, "--inspect=0.0.0.0:9229", "other machines could reach"),
    ],
)
def test_a_hash_gets_a_debugger_only_where_the_policy_lets_it(
    r: redis.Redis, run: Runner, local: Local, policy: str | None, option: str, why: str
) -> None:
    local("print('ran')", options=option)
    run.set_policy(policy)
    done = run("t", "1")
    assert (done.code, done.out) == (77, "")
    assert "--inspect in field options of t:1:h" in done.err
    assert why in done.err
    run.set_policy(MAY_INSPECT)
    r.hset("t:1:h", "options", "--inspect=127.0.0.1:0")
    assert run("t", "1").out == "ran\n"


def test_a_hash_that_asks_for_a_debugger_later_is_agreed_to_first(r: redis.Redis, run: Runner, local: Local) -> None:
    local("print('ran')")
    run.set_policy(MAY_INSPECT)
    assert run("t", "1").code == 0
    r.hset("t:1:h", "options", "--inspect=127.0.0.1:0")
    refused = run("t", "1")
    assert (refused.code, refused.out) == (77, "")
    assert "--inspect=127.0.0.1:0" in refused.err
    assert [run("t", "1", "--yes").out, run("t", "1").out] == ["ran\n"] * 2


def test_a_port_that_is_taken_is_said_and_nothing_runs(r: redis.Redis, run: Runner, local: Local) -> None:
    local("print('ran')")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("t", "1", f"--inspect={port}")
    assert (done.code, done.out) == (1, "")
    assert f"error: the debugger cannot listen on 127.0.0.1:{port}: Address already in use" in done.err


def test_without_inspect_nothing_of_a_debugger_is_loaded(r: redis.Redis, run: Runner, local: Local) -> None:
    local("import sys\nprint([m for m in sys.modules if 'pydev' in m or 'debugpy' in m])")
    assert run("t", "1").out == "[]\n"
