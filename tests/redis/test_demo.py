"""The README's first command, as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from raw_host import RawHost

DEMO = Path(__file__).parents[2] / "demo"


def demo(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """With this test's own environment of Python, so that nothing is installed."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "VENV": sys.prefix, **env}
    return subprocess.run(
        [DEMO / script], env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


@pytest.mark.timeout(500)  # four demos
def test_the_demo_shows_what_it_says_and_leaves_nothing(r: redis.Redis, redis_url: str, host: RawHost) -> None:
    for env in ({}, {"REDIS_URL": redis_url}, {"REDIS_URL": redis_url}):
        assert demo("clean.sh", **env).returncode == 0
        done = demo("run.sh", **env)
        assert done.returncode == 0, done.stdout + done.stderr
        for text in (
            "Hello, world!",
            'Requires net access to "127.0.0.1:',
            'Requires read access to "/etc/passwd"; grant it with: --allow-read=/etc/passwd (field allowRead of demo-worker:1:h)',
            "demoWorkerTrace",
            "pending requests: 0",
            "worker's exit code: 0",
        ):
            assert text in done.stdout
        assert r.keys("demo-worker*") == []

    host.files["/o/r/main/demo/worker.py"] = (DEMO / "worker.py").read_text()
    url = host.url + "/o/r/{version}/demo/worker.py"
    done = demo("run.sh", WORKER_URL=url, WORKER_VERSION="main")
    assert done.returncode == 0
    assert "Hello, world!" in done.stdout
    assert [path for path, _ in host.requests] == ["/o/r/main/demo/worker.py"]

    r.hset("demo-worker:1:h", "url", "somebody's own")
    done = demo("run.sh", REDIS_URL=redis_url)
    assert (done.returncode, "was not made by this demo" in done.stderr) == (1, True)
    assert demo("clean.sh", REDIS_URL=redis_url).returncode == 0
    assert r.hgetall("demo-worker:1:h") == {"url": "somebody's own"}


@pytest.mark.timeout(180)
def test_clean_ends_a_running_worker(r: redis.Redis, redis_url: str, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "worker.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    r.hset("demo-worker:1:h", mapping={"url": str(tmp_path), "version": "local", "madeBy": "sandboxrun demo"})
    with run.start("demo-worker", "1") as process:
        assert process.stdout.readline() == b"ready\n"
        assert demo("clean.sh", REDIS_URL=redis_url).returncode == 0
        assert process.wait(20) == 128 + 15
    assert r.keys("demo-worker*") == []
