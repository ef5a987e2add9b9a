"""The README's first command, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hints
import pytest
import redis
from raw_host import RawHost
from servers import Own

DEMO = Path(__file__).parents[2] / "demo"
ANY_PORT = "--inspect=127.0.0.1:0"  # another test may have the usual one
SECONDS = 120


def environment(**env: str) -> dict[str, str]:
    """With this test's own environment of Python, so that nothing is installed."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "VENV": sys.prefix,
        "DEMO_STATE": os.environ["DEMO_STATE"],
        **env,
    }


def demo(script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [DEMO / script, *args]
    return subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
    )


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The demo's folder for its state."""
    monkeypatch.setenv("DEMO_STATE", str(tmp_path))
    yield tmp_path / "demo-state"
    demo("clean.sh")


@pytest.mark.timeout(500)  # four demos
def test_the_demo_shows_what_it_says_and_leaves_nothing(r: redis.Redis, redis_url: str, host: RawHost) -> None:
    for env in ({}, {"REDIS_URL": redis_url}, {"REDIS_URL": redis_url}):
        assert demo("clean.sh", **env).returncode == 0
        done = demo("run.sh", **env)
        assert done.returncode == 0, done.stdout + done.stderr
        for text in (
            "asks for a debugger, which the default policy does not allow",
            '[worker."demo-worker"]\ninspect = true',
            "Debugger listening on 127.0.0.1:",
            "Hello, world!",
            "Good morning, world!",
            'Requires net access to "127.0.0.1:',
            'Requires read access to "/etc/passwd"; grant it with: --allow-read=/etc/passwd (field allowRead of demo-worker:1:h)',
            "demoWorkerTrace",
            "pending requests: 0",
        ):
            assert text in done.stdout
        assert done.stdout.count("worker's exit code: 0") == 2
        assert done.stdout.rpartition("\n$ ")[2].startswith("redish demo-worker:res:x -n 1\n")
        assert r.keys("demo-worker*") == []


def test_the_hash_is_the_originals_field_by_field() -> None:
    done = demo("run.sh")
    shown = done.stdout.partition("$ redish demo-worker:1:h\n")[2].partition("\n\n")[0]
    assert re.fullmatch(
        r"consumerId 1\n"
        r"denoOptions --inspect=127\.0\.0\.1:(9229|0)\n"
        r"requestLimit 1\n"
        r"requestStream demo-worker:req:x\n"
        r"responseStream demo-worker:res:x\n"
        r"type demo-worker\n"
        r"url http://127\.0\.0\.1:\d+/sandboxrun/demo/main/demo/worker\.py\n"
        r"version main",
        shown,
    ), done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_the_originals_variables_are_read(r: redis.Redis, redis_url: str, host: RawHost) -> None:
    host.files["/o/r/v2/demo/worker.py"] = (DEMO / "worker.py").read_text()
    env = {
        "REDIS_URL": redis_url,
        "WORKER_TYPE": "my-worker",
        "WORKER_URL": host.url + "/o/r/{version}/demo/worker.py",
        "WORKER_VERSION": "v2",
        "WORKER_DENO_OPTIONS": "--no-prompt",
    }
    done = demo("run.sh", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "$ redish my-worker:1:h\n",
        "\ntype my-worker\n",
        "\nversion v2\n",
        "denoOptions --no-prompt\n",
        "Hello, world!",
    ):
        assert text in done.stdout
    assert "Debugger" not in done.stdout
    assert [path for path, _ in host.requests][:1] == ["/o/r/v2/demo/worker.py"]
    assert r.keys("my-worker*") == []
    done = demo("run.sh", WORKER_TYPE="My Worker")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: worker type 'My Worker' is not valid")


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"WORKER_URL": "http://127.0.0.1:9/o/r/{version}/worker.py"}, "127.0.0.1:9"),
        ({"WORKER_DENO_OPTIONS": f"{ANY_PORT} --allow-everything"}, "'--allow-everything'"),
        ({"WORKER_DENO_OPTIONS": "--inspect=0.0.0.0:9229"}, "0.0.0.0:9229"),
    ],
)
def test_a_worker_that_does_not_start_ends_the_demo_at_once(
    r: redis.Redis, redis_url: str, env: dict[str, str], text: str
) -> None:
    began = time.monotonic()
    done = demo("run.sh", REDIS_URL=redis_url, **{"WORKER_DENO_OPTIONS": ANY_PORT, **env})
    assert time.monotonic() - began < 15  # which it waits for a worker that runs
    assert done.returncode == 1
    assert text in done.stdout + done.stderr
    assert "error: the worker ended with exit code " in done.stderr
    assert r.keys("*") == []


def test_a_worker_that_ends_before_its_reply_ends_the_demo_at_once(
    r: redis.Redis, redis_url: str, host: RawHost
) -> None:
    host.files["/o/r/main/worker.py"] = (
        "import os\nfrom sandboxrun import worker\n@worker.handler\ndef handle(request):\n    os._exit(7)\nworker.run()\n"
    )
    began = time.monotonic()
    done = demo(
        "run.sh", REDIS_URL=redis_url, WORKER_URL=f"{host.url}/o/r/main/worker.py", WORKER_DENO_OPTIONS=ANY_PORT
    )
    assert time.monotonic() - began < 15
    assert done.returncode == 1
    assert "error: the worker ended with exit code 7 while the demo waited for the reply" in done.stderr


def test_a_redis_without_a_password_ends_the_demo_until_the_hint_is_pasted(tmp_path: Path) -> None:
    with Own() as server:
        env = {"HOME": str(tmp_path), "REDIS_URL": server.url, "WORKER_DENO_OPTIONS": ANY_PORT}
        done = demo("run.sh", **env)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: Redis at {server.url} accepts commands without a password")
        with redis.Redis.from_url(server.url) as r:
            assert r.keys("*") == []
        assert hints.paste(hints.hint_of(done.stderr), environment(**env), tmp_path).returncode == 0
        done = demo("run.sh", **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert demo("run.sh", **env).returncode == 0


def test_keys_of_somebody_else_are_left_alone(r: redis.Redis, redis_url: str) -> None:
    r.hset("demo-worker:1:h", "url", "somebody's own")
    for args in ((), ("--keep",)):
        done = demo("run.sh", *args, REDIS_URL=redis_url)
        assert (done.returncode, "was not made by this demo" in done.stderr) == (1, True)
        assert demo("clean.sh", REDIS_URL=redis_url).returncode == 0
    assert r.hgetall("demo-worker:1:h") == {"url": "somebody's own"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("own", [False, True])
def test_keep_leaves_it_running_and_says_what_to_type(
    r: redis.Redis, redis_url: str, state: Path, tmp_path: Path, own: bool
) -> None:
    env = {"WORKER_DENO_OPTIONS": ANY_PORT, **({"REDIS_URL": redis_url} if own else {})}
    done = demo("run.sh", "--keep", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    typed, _, again = done.stdout.partition("To type:\n")[2].strip().partition("\n\nand to start it again:\n")
    export, *commands = typed.splitlines()
    assert export.startswith("export REDIS_URL=redis://:")
    assert len(commands) == 3

    def paste(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f"{export}\n{command}"], env=environment(), cwd="/", capture_output=True, text=True, timeout=60
        )

    call, redish, stop = map(paste, commands)
    assert '"text": "Good morning, you!"' in call.stdout, call
    assert "\ntype demo-worker\n" in redish.stdout, redish
    assert (stop.returncode, "has ended" in stop.stdout) == (0, True), stop

    assert "error: an earlier demo is kept running\nhint: demo/clean.sh\n" in demo("run.sh", **env).stderr
    command = ["sh", "-c", f"{export}\nexec {again.strip()}"]
    process = subprocess.Popen(command, env=environment(HOME=str(tmp_path)), stderr=subprocess.PIPE, cwd="/")
    try:
        assert '"text": "Good morning, you!"' in paste(commands[0]).stdout
        assert demo("clean.sh", **env).returncode == 0
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert not state.exists()
    assert r.keys("demo-worker*") == []
    assert paste(commands[0]).returncode != 0


def test_an_unknown_option_is_named() -> None:
    done = demo("run.sh", "--kep")
    assert (done.returncode, done.stderr) == (1, "error: demo/run.sh does not know '--kep'\nhint: demo/run.sh --keep\n")


@pytest.mark.timeout(180)
def test_clean_ends_a_running_worker(r: redis.Redis, redis_url: str, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "worker.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    r.hset("demo-worker:h", mapping={"madeBy": "sandboxrun demo"})
    r.hset("demo-worker:1:h", mapping={"url": str(tmp_path), "version": "local"})
    with run.start("demo-worker", "1") as process:
        assert process.stdout.readline() == b"ready\n"
        assert demo("clean.sh", REDIS_URL=redis_url).returncode == 0
        assert process.wait(20) == 128 + 15
    assert r.keys("demo-worker*") == []
