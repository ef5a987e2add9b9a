"""Where `worker.run()` may be called, what a script says that never calls it, and scripts that are none."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from runner import Runner

from sandboxrun import client

Local = Callable[..., Path]
PLAIN = "import asyncio, sys, threading\nfrom sandboxrun import worker\nworker.handler(lambda request: {'ok': True})\n"
ASYNC = "import asyncio, sys, threading\nfrom sandboxrun import worker\n@worker.handler\nasync def handle(request):\n    return {'ok': True}\n"
IN_THREAD = {
    "a thread that is joined": "t = threading.Thread(target=worker.run)\nt.start()\nt.join()\n",
    "a daemon thread": "threading.Thread(target=worker.run, daemon=True).start()\nthreading.Event().wait(20)\n",
    "a pool": "import concurrent.futures as f\nwith f.ThreadPoolExecutor() as pool:\n    pool.submit(worker.run).result()\n",
    "a thread of _thread": "import _thread\n_thread.start_new_thread(worker.run, ())\nthreading.Event().wait(20)\n",
    "to_thread": "asyncio.run(asyncio.to_thread(worker.run))\n",
}
IN_LOOP = {
    "a coroutine": "async def main():\n    worker.run()\nasyncio.run(main())\n",
    "a task": "async def main():\n    async def inner():\n        worker.run()\n    await asyncio.create_task(inner())\nasyncio.run(main())\n",
    "a callback": "loop = asyncio.new_event_loop()\nloop.call_soon(worker.run)\nloop.run_forever()\n",
}


@pytest.mark.parametrize("head", [PLAIN, ASYNC], ids=["plain", "async"])
@pytest.mark.parametrize("body", IN_THREAD.values(), ids=IN_THREAD)
def test_in_a_thread_it_is_an_error_with_a_code(run: Runner, local: Local, head: str, body: str) -> None:
    local(head + body)
    done = run("t", "1", "--quiet")
    assert done.code == 78, done
    assert done.err.startswith("error: worker.run() was called in a thread")
    assert "Traceback" not in done.err
    assert "never awaited" not in done.err


@pytest.mark.parametrize("head", [PLAIN, ASYNC], ids=["plain", "async"])
@pytest.mark.parametrize("body", IN_LOOP.values(), ids=IN_LOOP)
def test_in_a_running_event_loop_it_is_an_error_with_a_code(run: Runner, local: Local, head: str, body: str) -> None:
    local(head + body)
    done = run("t", "1", "--quiet")
    assert done.code == 78, done
    assert "error: worker.run() was called in a running event loop" in done.err
    assert "never awaited" not in done.err


def test_after_an_event_loop_it_runs(r: redis.Redis, run: Runner, local: Local) -> None:
    local(PLAIN + "asyncio.run(asyncio.sleep(0))\nworker.run()\n", requestLimit="1")
    client.send(r, "t", {}, now="x")
    assert run("t", "1").code == 0


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("", True),
        ("if __name__ == '__worker__': worker.run()\n", True),
        ("sys.exit(0)\n", True),
        ("raise ValueError('why')\n", False),
        ("worker.run(concurrency=0)\n", False),
    ],
)
def test_a_script_that_never_runs_its_handlers_says_so(run: Runner, local: Local, end: str, said: bool) -> None:
    local(PLAIN + end)
    done = run("t", "1", "--quiet")
    assert (done.err.count("the script has ended without worker.run()") == 1) is said, done.err
    assert said is (done.code == 0)


def test_a_script_without_handlers_says_nothing(run: Runner, local: Local) -> None:
    local("from sandboxrun import worker\nprint('done')\n")
    done = run("t", "1", "--quiet")
    assert (done.code, done.out, done.err) == (0, "done\n", "")


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("__main__.py", "print(1)")
    return data.getvalue()


NO_SCRIPTS = {
    "empty": (b"", "does nothing when run: it is empty"),
    "white space": (b"\n \n\t\n", "does nothing when run: it is empty"),
    "a comment": (b"# worker\n", "does nothing when run: it is empty"),
    "a docstring": (b'"""A worker to come."""\n', "does nothing when run"),
    "JSON": (b'{"name": "worker", "version": [1, 2]}', "does nothing when run"),
    "a JSON text": (b'"not found"', "does nothing when run"),
    "a JSON list": (b"[]", "does nothing when run"),
    "a number": (b"404\n", "does nothing when run"),
    "YAML": (b'name: "worker"\nversion: "1"\n', "does nothing when run"),
    "an error message": (b"404: Not Found", "not valid Python"),
    "JSON with null": (b'{"error": null}', "does nothing when run"),
    "HTML": (b"<!doctype html><html></html>", "HTML"),
    "XML": (b"<?xml version='1.0'?><a/>", "HTML or XML"),
    "a zip": (zipped(), "not"),
    "an ELF file": (b"\x7fELF\x02\x01\x01" + bytes(64), "not valid Python"),
    "UTF-16": ("print(1)".encode("utf-16"), "not UTF-8"),
    "NUL": (b"print(1)\0", "not valid Python"),
    "a shell script": (b"#!/bin/sh\necho hello there\n", "not valid Python"),
}


@pytest.mark.parametrize("label", NO_SCRIPTS)
def test_a_local_file_that_is_no_script_is_refused(run: Runner, local: Local, label: str) -> None:
    data, said = NO_SCRIPTS[label]
    folder = local("")
    (folder / "worker.py").write_bytes(data)
    done = run("t", "1", "--quiet")
    assert done.code == 69, done
    assert done.err.startswith("error: ")
    assert str(folder) in done.err
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "code",
    [
        "print(1)",
        "pass",
        "import os",
        "x = 1",
        "def f(): pass",
        "f'{print(2)}'",
        "x: int = 3",
        "if 1: pass",
        "[print(3)]",
    ],
)
def test_what_does_something_runs(run: Runner, local: Local, code: str) -> None:
    local('"""Documented."""\n' + code + "\n")
    assert run("t", "1", "--quiet").code == 0


SPAWNS = """
import multiprocessing
from sandboxrun import worker

def double(n):
    return 2 * n

def handle(request):
    with multiprocessing.get_context("{method}").Pool(1) as pool:
        return {{"n": pool.apply(double, (request.data["n"],))}}

worker.handler(handle)
worker.run()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_that_imports_the_script_runs_no_worker(
    r: redis.Redis, run: Runner, local: Local, method: str
) -> None:
    """Started by hand: in the sandbox there are no semaphores for a pool."""
    folder = local(SPAWNS.format(method=method))
    command = [sys.executable, str(folder / "worker.py"), "t:1:h"]
    with subprocess.Popen(command, env=run.env, stderr=subprocess.PIPE) as process:
        try:
            with client.Client(run.env["REDIS_URL"]) as asked:
                assert asked.call("t", {"n": 21}, timeout=30)["n"] == 42
                assert asked.call("t", {"n": 4}, timeout=30)["n"] == 8
            process.terminate()
            assert process.stderr is not None
            said = process.stderr.read().decode()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert "worker.run()" not in said
    assert r.xlen("t:res:x") == 2


@pytest.mark.parametrize("head", [PLAIN, ASYNC], ids=["plain", "async"])
def test_the_first_interrupt_ends_a_worker_by_hand_in_order_and_the_second_at_once(
    r: redis.Redis, run: Runner, local: Local, head: str
) -> None:
    slow = "    import time\n    r.rpush('began', 1)\n    time.sleep(request.data['s'])\n    return {}\n"
    kind = "async def" if "async def" in head else "def"
    code = f"from sandboxrun import worker\nr = worker.connect()\n@worker.handler\n{kind} handle(request):\n{slow}worker.run()\n"
    folder = local(code)
    command = [sys.executable, str(folder / "worker.py"), "t:1:h"]

    def begun() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env=run.env, stderr=subprocess.PIPE)
        assert r.blpop(["began"], timeout=20)
        return process

    client.send(r, "t", {"s": 0.5}, now="x")
    process = begun()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, b"")
    assert r.xlen("t:res:x") == 1

    client.send(r, "t", {"s": 20}, now="x")
    process = begun()
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=15)
    assert (process.returncode, err) == (-signal.SIGINT, b"")
