"""SANDBOXRUN_TRACE_STARTUP: marks in their order, for the operator alone."""

from __future__ import annotations

from pathlib import Path

import redis
from runner import Runner

LOOK = """\
import os
print(os.environ.get("SANDBOXRUN_TRACE_STARTUP"), os.environ.get("OTHER"))
for fd in range(256):
    try:
        found = os.fstat(fd)
    except OSError:
        continue
    print(found.st_dev, found.st_ino)
"""


def worker(r: redis.Redis, folder: Path, code: str, **fields: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(code)
    r.hset("t:1:h", mapping={"url": str(folder), "version": "local", **fields})


def test_the_marks_are_appended_in_the_order_of_the_start(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    worker(r, tmp_path / "worker", "pass")
    path = tmp_path / "trace"
    run.env["SANDBOXRUN_TRACE_STARTUP"] = str(path)
    assert run("t", "1").code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    marks = [line.split(" ", 1) for line in path.read_text().splitlines()]
    ours = [(int(at), name) for at, name in marks if not name.startswith(" ")]
    assert ours == sorted(ours)
    names = [name for _, name in ours]
    assert names[:2] == ["interpreter is up", "main"]
    assert names[-3:] == ["go", "worker reaped", "end"]
    child = [(int(at), name.strip()) for at, name in marks if name.startswith("  child")]
    assert [name for _, name in child] == ["child: bootstrap imported", "child: plan read", "child: confined"]
    assert child == sorted(child)


def test_no_grant_gives_the_variable_or_the_file_to_a_worker(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    worker(r, tmp_path / "worker", LOOK, allowEnv="SANDBOXRUN_TRACE_STARTUP,OTHER")
    run.env |= {"SANDBOXRUN_TRACE_STARTUP": str(tmp_path / "trace"), "OTHER": "given"}
    done = run("t", "1")
    assert done.code == 0, done.err
    shown, *files = done.out.splitlines()
    assert shown == "None given"
    trace = (tmp_path / "trace").stat()
    assert len(files) >= 3
    assert f"{trace.st_dev} {trace.st_ino}" not in files


def test_a_worker_that_connects_for_ever_does_not_fill_the_disk(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    code = (
        "import socket\nfor _ in range(200):\n    with socket.socket() as s:\n        s.connect_ex(('127.0.0.1', 1))\n"
    )
    worker(r, tmp_path / "worker", code)
    run.env["SANDBOXRUN_TRACE_STARTUP"] = str(tmp_path / "trace")
    assert run("t", "1").code == 0
    assert len((tmp_path / "trace").read_text().splitlines()) <= 65


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    worker(r, tmp_path / "worker", "print('ran')")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "link", tmp_path / "none" / "trace"):
        run.env["SANDBOXRUN_TRACE_STARTUP"] = str(path)
        done = run("t", "1")
        assert (done.code, done.out) == (78, "")
        assert len(done.err.splitlines()) == 1
        assert str(path) in done.err
    assert not (tmp_path / "target").exists()
