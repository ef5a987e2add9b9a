"""A worker can fence off whoever answers on its own stream, and nobody else: an attack on another type's fence."""

from __future__ import annotations

from pathlib import Path

from arena import wait_for
from logins import Probe, Server, write_worker
from loop_workers import PLAIN, answer, send
from runner import Runner
from scripts import script

ATTACK = script("fence_attack")


def test_a_worker_with_default_rights_does_not_hold_up_another_type(
    server: Server, run: Runner, tmp_path: Path
) -> None:
    r = server.r
    write_worker(server, tmp_path, PLAIN, replyExpireSeconds="600")
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "worker.py").write_text(ATTACK)
    r.hset("evil:1:h", mapping={"url": str(tmp_path / "attack"), "version": "local"})
    with run.start("t", "1") as victim:
        assert answer(r, send(r, n=0))["n"] == 0
        with run.start("evil", "1") as evil:
            wait_for(lambda: r.hget("evil:1:h", "pid"), 20)
            refs = [send(r, n=n) for n in range(2000)]
            assert [answer(r, ref, 10)["n"] for ref in refs] == list(range(2000))
            out, err = evil.communicate(timeout=30)
        assert victim.poll() is None
        fields = r.hkeys("t:req:x:fence:1:f")
    assert evil.returncode == 0, err
    tried, refused = map(int, out.split())
    assert tried > 100
    # All that was tried on the fence itself, and DEL of a key that has the form of a trace.
    assert refused == tried * (3 if server.selectors else 2) // 4
    assert len(fields) == 1
    assert fields != ["x"]


def test_a_worker_may_fence_on_its_own_stream_alone(probe: Probe) -> None:
    own, other = "t:req:x:fence:2:f", "other:req:x:fence:1:f"
    answers = probe(
        ("HSET", own, "c", "1"), ("WATCH", own), ("HEXISTS", own, "c"), ("UNWATCH",), ("DEL", own),
        ("HEXISTS", other, "c"), ("DEL", "other:1:h"), ("DEL", "t:req:x:fence:2"), ("SET", own, "x"),
    )  # fmt: skip
    assert answers[:5] == [":1", "+OK", ":1", "+OK", ":1"]
    assert all(answer.startswith("-NOPERM") for answer in answers[5:]), answers


def test_a_takeover_breaks_the_fence_of_an_older_worker_too(server: Server, run: Runner, tmp_path: Path) -> None:
    """Its fence is a key of another form, which until 0.3 is deleted as well."""
    r = server.r
    r.xgroup_create("t:req:x", "worker", id="0", mkstream=True)
    ref = send(r, n=1)
    found = r.xreadgroup("worker", "old", {"t:req:x": ">"})
    r.execute_command("XCLAIM", "t:req:x", "worker", "old", 0, found[0][1][0][0], "IDLE", 60_000, "JUSTID")
    r.hset("req:t:req:x old:h", "c", 1)
    r.hset("req:t:req:x 1:h", "c", 1)  # that of a predecessor of this worker
    write_worker(server, tmp_path, PLAIN, takeoverMillis="1000")
    with run.start("t", "1"):
        assert answer(r, ref)["deliveries"] == 2
        assert not r.exists("req:t:req:x old:h")
        assert not r.exists("req:t:req:x 1:h")
