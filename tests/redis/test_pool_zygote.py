"""A pool forks the workers whose policy has `share-memory`, and spawns the others."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from runner import ALLOW_ALL, Runner

PROCESS = Path(__file__).parent.parent / "support" / "pool_process.py"
WAITS = "import signal\nprint('there', flush=True)\nwhile True: signal.pause()\n"


@pytest.mark.parametrize("shares", [True, False])
def test_a_worker_is_forked_if_its_policy_says_so_and_ends_with_the_pool(
    redis_url: str, r: redis.Redis, run: Runner, tmp_path: Path, shares: bool
) -> None:
    (tmp_path / "worker.py").write_text(WAITS)
    r.hset("waits:h", mapping={"url": str(tmp_path), "version": "local"})
    run.set_policy(ALLOW_ALL + "share-memory = true\n" * shares)
    command = [sys.executable, str(PROCESS), redis_url, "waits", "3", "zygote"]
    with subprocess.Popen(command, env=run.env, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            *workers, spare = map(int, process.stdout.readline().split())
            pidfds = [os.pidfd_open(pid) for pid in (*workers, spare)]
            for number, pid in enumerate(workers, 1):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                assert f"waits:{number}:h" in words
                assert any(os.path.basename(word).startswith("zygote.") for word in words) is shares
        finally:
            process.kill()
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)
