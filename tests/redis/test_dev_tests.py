"""`sandboxrun dev` beside a spec.json: its tests run after each save, what has changed is said, and requests become tests."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from agents import wait_for
from dev_terminal import Terminal, close
from runner import Runner

COUNTER = """
import datetime, json, os, time, uuid
from sandboxrun import worker

r = worker.connect()

@worker.handler
def handle(request):
    data = request.data
    if data.get("die"):
        raise OSError("broken")
    if "user" not in data:
        raise worker.BadRequest(f"no user, at {datetime.datetime.now(datetime.UTC).isoformat()}")
    user = data["user"]
    total = r.hincrby(f"count:{user}:h", "words", data.get("n", 1))
    r.zadd("count:top:z", {user: total})
    r.set("count:last", f"by {uuid.uuid4()} at {data.get('at')}", ex=60)
    r.xadd("count:log:x", {"user": user, "id": os.urandom(16).hex(), "price": "$5"})
    if data.get("named"):
        r.set(f"count:{uuid.uuid4()}", 1)
    return {"total": total, "id": str(uuid.uuid4()), "at": data.get("at"), "cost": "$5"}

worker.run()
"""
PAGE = Path(__file__).parents[2] / "docs/testing.md"
UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
WAITS = COUNTER.replace("    data = request.data\n", "    data = request.data\n    time.sleep(600)\n")
SPEC: dict[str, Any] = {
    "type": "counter",
    "grants": {"allowRedis": "count:*"},
    "tests": [
        {"name": "counts", "request": {"user": "ann"}, "reply": {"total": 1}, "after": {
            "count:ann:h": {"words": 1}, "count:top:z": {"ann": 1}, "count:last": {"$value": "$any", "$ttl": 60},
            "count:log:x": ["$any"],
        }},
        {"name": "refuses", "request": {}, "reply": {"code": 400}},
    ],
}  # fmt: skip


@pytest.fixture
def folder(run: Runner) -> Path:
    """A worker and its spec."""
    del run.env["REDIS_URL"]
    run.env["TERM"] = "dumb"
    run.env["TMPDIR"] = str(run.home)
    folder = run.home / "counter"
    folder.mkdir()
    (folder / "worker.py").write_text(COUNTER)
    (folder / "spec.json").write_text(json.dumps(SPEC))
    return folder


@pytest.fixture
def dev(run: Runner) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*args: str) -> Terminal:
        made.append(Terminal(run, "counter", "--allow-redis=count:*", *args))
        made[-1].until("counter> ")
        return made[-1]

    yield start
    for terminal in made:
        close(terminal.spawned)


def test_what_a_save_changes_is_said(folder: Path, dev: Callable[..., Terminal]) -> None:
    worker, spec = folder / "worker.py", folder / "spec.json"
    terminal = dev()
    terminal.until("tests: 2 pass")
    worker.write_text(COUNTER.replace('"total": total', '"total": total + 1'))
    terminal.until("tests: `counts` fails now: reply.total: expected 1, got 2\r\n")
    worker.write_text(COUNTER.replace('"total": total', '"total": total + 1') + "\n")
    terminal.until("tests: 1 pass, 1 fails\r\n")
    worker.write_text(COUNTER)
    assert "restarted in" in terminal.until("tests: `counts` passes again\r\n")
    spec.write_text("{\n")
    terminal.until("tests: spec.json:2:1 is not JSON: Expecting property name enclosed in double quotes\r\n")
    spec.write_text(json.dumps({**SPEC, "tests": []}))
    terminal.until("tests: spec.json has no tests: ")
    worker.write_text("raise SystemExit(3)\n")
    spec.write_text(json.dumps(SPEC))
    terminal.until("tests: the worker does not start: it ended with exit code 3\r\n")
    worker.write_text(COUNTER)
    terminal.until("tests: 2 pass\r\n")
    spec.unlink()
    assert "tests:" not in terminal.until("restarted in ")
    terminal.type("exit")
    assert "tests:" not in terminal.left()


def test_a_newer_save_cancels_the_tests_and_nothing_stays_behind(folder: Path, dev: Callable[..., Terminal]) -> None:
    worker = folder / "worker.py"
    (folder / "spec.json").write_text(
        json.dumps({**SPEC, "tests": [{**each, "timeout": 600} for each in SPEC["tests"]]})
    )
    terminal = dev()
    terminal.until("tests: 2 pass")
    worker.write_text(WAITS)
    terminal.until("restarted in ")
    _wait_for_tests(folder.parent)
    worker.write_text(COUNTER)
    between = terminal.until("tests: 2 pass\r\n")
    assert "restarted in " in between and between.count("tests:") == 0
    wait_for(lambda: not list(folder.parent.glob("sandboxrun-test-*")))
    worker.write_text(WAITS)
    terminal.until("restarted in ")
    _wait_for_tests(folder.parent)
    terminal.type("exit")
    terminal.left()
    assert list(folder.parent.glob("sandboxrun-*")) == []


def _wait_for_tests(home: Path) -> None:
    """Until a worker that is tested runs."""
    wait_for(lambda: list(home.glob("sandboxrun-test-*")))


def test_no_tests_run_where_none_are_wanted_or_there_are_none(folder: Path, dev: Callable[..., Terminal]) -> None:
    for args, name in ((("--no-tests",), "spec.json"), ((), "other.json")):
        (folder / "spec.json").rename(folder / name)
        terminal = dev(*args)
        terminal.type("user=ann")
        assert "tests:" not in terminal.until("200 in ")
        (folder / "worker.py").write_text(COUNTER + "\n")
        terminal.until("restarted in ")
        terminal.type("user=ann")
        assert "tests:" not in terminal.until("200 in ")
        terminal.type("exit")
        assert "tests:" not in terminal.left()


def recorded(folder: Path) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = json.loads((folder / "spec.json").read_text())["tests"]
    return tests


def test_typed_requests_become_tests_that_pass(folder: Path, dev: Callable[..., Terminal], run: Runner) -> None:
    (folder / "spec.json").unlink()
    terminal = dev("--record")
    terminal.type("user=ann at=2026-12-01T00:00:00Z")
    terminal.until("recorded: user=ann at=2026-12-01T00:00:00Z\r\n")
    assert "restarted" not in terminal.until("tests: 1 pass\r\n")
    for _ in range(2):
        terminal.type('{"user": "bob", "n": 2}')
        terminal.until("recorded: user=bob n=2")
    terminal.until("tests: 3 pass\r\n")
    terminal.type('{"note": 1}')
    terminal.until("recorded: note=1\r\n")
    terminal.until("tests: 4 pass\r\n")
    terminal.type('{"note": 1}')
    terminal.until("recorded before: note=1\r\n")
    terminal.type("die=1")
    terminal.until("not recorded: the request failed\r\n")
    terminal.type("user=ann named=1")
    terminal.until("differs each time: no test can name it\r\n")
    terminal.type("exit")
    terminal.left()
    first, second, third, refused = recorded(folder)
    assert first["reply"] == {
        "total": 1, "id": {"$match": UUID}, "at": "2026-12-01T00:00:00Z", "cost": "$$5",
    }  # fmt: skip
    assert "before" not in first
    assert first["after"]["count:last"] == {
        "$value": {"$match": f"by {UUID} at 2026-12-01T00:00:00Z"}, "$ttl": 60,
    }  # fmt: skip
    assert first["after"]["count:log:x"] == [{"user": "ann", "id": {"$match": "[0-9a-f]{16,}"}, "price": "$$5"}]
    assert second["before"]["count:top:z"] == {"ann": 1}
    assert (second["name"], third["name"]) == ("user=bob n=2", "user=bob n=2 (2)")
    assert third["after"]["count:bob:h"] == {"words": 4}
    assert (refused["reply"]["code"], "$match" in refused["reply"]["err"]["message"]) == (400, True)
    spec = json.loads((folder / "spec.json").read_text())
    assert (spec["type"], spec["grants"]) == ("counter", {"allowRedis": "count:*"})
    done = run("test", "counter")
    assert done.code == 0, done


def test_a_session_goes_as_the_page_shows(folder: Path, dev: Callable[..., Terminal]) -> None:
    """docs/testing.md"""
    page = PAGE.read_text()
    source = page.split("```python\n")[1].split("```")[0]
    spec, test = (json.loads(block.split("```")[0]) for block in page.split("```json\n")[1:3])
    spec["tests"][0]["after"]["count:top:z"] = {"ann": 42}  # as --update has written it
    (folder / "worker.py").write_text(source)
    (folder / "spec.json").write_text(json.dumps(spec))
    terminal = dev("--record")
    lines = iter(re.findall(r"^counter> (tests: .*)$", page, re.MULTILINE))
    terminal.until(next(lines))
    for text in (source.replace("data.n)", "data.n + 1)"), source):
        (folder / "worker.py").write_text(text)
        terminal.until(f"{next(lines)}\r\n")
    terminal.type('{"user": "ann", "n": 2}')
    terminal.until("200 in ")
    terminal.until('"total": 2\r\n}\r\nrecorded: user=ann n=2\r\n')
    terminal.until(f"{next(lines)}\r\n")
    terminal.type("exit")
    terminal.left()
    assert recorded(folder) == [*spec["tests"], test]


def test_of_many_keys_only_those_that_change_are_written_before(
    folder: Path, dev: Callable[..., Terminal], run: Runner, redis_url: str, r: redis.Redis
) -> None:
    for number in range(21):
        r.set(f"other:{number}", number)
    r.hset("count:ann:h", "words", 40)
    terminal = dev("--record", "--redis", redis_url)
    terminal.type("user=ann")
    terminal.until("of 22 keys, before has only those that the request has changed")
    terminal.until("recorded: user=ann\r\n")
    terminal.until("tests: 3 pass")
    terminal.type("exit")
    terminal.left()
    assert recorded(folder)[-1]["before"] == {"count:ann:h": {"words": 40}}


def test_a_file_that_is_no_spec_is_left_as_it_is(folder: Path, dev: Callable[..., Terminal], run: Runner) -> None:
    wrong = json.dumps({"type": "counter", "tests": [{"name": "a"}, {"name": "a"}]})
    (folder / "spec.json").write_text(wrong)
    terminal = dev("--record", "--no-tests")
    terminal.type("user=ann")
    terminal.until('spec.json: tests[1] is a second test with the name "a"\r\n')
    terminal.until("200 in ")
    terminal.type("exit")
    terminal.left()
    assert (folder / "spec.json").read_text() == wrong
    done = run("dev", os.fspath(folder / "worker.py"), "--record")
    assert (done.code, "--record writes spec.json into a folder, and " in done.err) == (64, True)
