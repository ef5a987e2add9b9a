"""A real agent, seen: by its page, its metrics, `sandboxrun health`, `ps` and `info`, with a worker that fails and is refused."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from runner import Runner

from sandboxrun.redis.lease import LEASE_SECONDS

Local = Callable[..., Path]
SECONDS = 60
WORKER = """\
import socket
from sandboxrun import worker

@worker.handler
def handle(request):
    if request.data.get("fail"):
        socket.create_connection(("192.0.2.1", 443))
    return {}

worker.run()
"""
HANGS = "import time\nfrom sandboxrun import worker\n\n@worker.handler\ndef handle(request):\n    time.sleep(600)\n\nworker.run()\n"


def until(ask: Callable[[], Any], true: Callable[[Any], bool] = bool) -> Any:
    end = time.monotonic() + SECONDS
    while not true(found := ask()):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def test_an_agent_is_seen_in_all_ways(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    local(WORKER)
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "worker.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs" / "worker.py").write_text(HANGS)
    r.hset("hangs:1:h", mapping={"url": str(tmp_path / "hangs"), "version": "local", "limitHandler": "1"})
    r.xgroup_create("hangs:req:x", "worker", "0", mkstream=True)
    r.xadd("hangs:req:x", {"ref": "h", "type": "hangs", "data": "{}"})
    r.rpush("hangs:start:q", "1")
    r.hset("bad:1:h", mapping={"url": str(folder), "version": "local"})
    run.set_policy('[worker."*"]\nopen-redis = true\nallow-read = ["*"]\n')
    r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
    r.rpush("t:start:q", "1")
    r.rpush("bad:start:q", "1")
    with run.start(
        "agent", "t", "bad", "hangs", "--page", "127.0.0.1:0", "--metrics-file", str(tmp_path / "x.prom")
    ) as agent:
        try:
            until(lambda: "is running" in run("health", "t", "1").out)
            for fail in ("", "", "1"):
                r.xadd("t:req:x", {"ref": f"r{fail}", "type": "t", "data": json.dumps({"fail": fail})})
            shown = until(
                lambda: next(
                    (w for w in json.loads(run("info", "t", "--json").out)["workers"] if w["handled"] == 3), None
                )
            )
            assert shown["codes"] == {"200": 2, "500": 1}
            text = until(
                lambda: (tmp_path / "x.prom").exists() and (tmp_path / "x.prom").read_text(),
                lambda text: (
                    bool(text)
                    and 'sandboxrun_denials_total{type="t",id="1",kind="net"} 1' in text
                    and "sandboxrun_lag" in text
                ),
            )
            assert 'sandboxrun_up{type="t",id="1"} 1' in text
            assert (
                0
                <= float(text.partition('sandboxrun_lease_age_seconds{type="t",id="1"} ')[2].split()[0])
                < LEASE_SECONDS
            )
            assert 'sandboxrun_requests_total{type="t",id="1",code="500"} 1' in text
            assert re.search(r'sandboxrun_restarts_total\{type="bad",id="1",reason="failed"\} \d', text)
            stuck = r'restarts_total\{type="hangs",id="1",reason="stuck"\} [1-9]'
            until(lambda: re.search(stuck, (tmp_path / "x.prom").read_text()))
            done = run("health")
            assert done.code == 0 and "t 1: net access to 192.0.2.1:443" in done.out
            assert "hint: sandboxrun perms t 1 --net 192.0.2.1:443" in done.out
            out = until(lambda: run("ps").out, lambda out: bool(re.search(r"bad 1 .* (waiting|failing) .*3", out)))
            assert re.search(
                r"^agent \S+ \(process \d+\): 3 of at most 200 workers of t, bad, hangs$", out, re.MULTILINE
            )
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(SECONDS)
    assert run("health").code == 1
