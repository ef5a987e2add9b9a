"""Each example is set up, started and asked by the commands of its README, under the default policy."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from hints import paste
from raw_host import RawHost, body
from runner import Runner

from sandboxrun import client

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = b"<!doctype html><title>Example Domain</title>"


@pytest.fixture
def home(redis_url: str, tmp_path: Path) -> Runner:
    """With the default policy."""
    return Runner(redis_url, tmp_path, policy=None)


def commands(readme: Path) -> list[tuple[str, list[str]]]:
    """Each command of the console blocks, with the lines that it prints."""
    shown: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", readme.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                shown.append((line[2:], []))
            else:
                shown[-1][1].append(line)
    return shown


def walk(run: Runner, name: str, at: dict[str, str]) -> tuple[list[str], str]:
    """Do what the README of an example shows. `at`: what stands for its hosts here."""
    return follow(run, EXAMPLES / name / "README.md", ROOT, at)


def follow(run: Runner, page: Path, folder: Path, at: dict[str, str]) -> tuple[list[str], str]:
    """Do what the page shows, in the folder; the commands, and what the workers' terminals show at the end."""
    typed, err = [], ""
    with contextlib.ExitStack() as stack:
        workers = []
        for command, printed in commands(page):
            for word, here in at.items():
                command = command.replace(word, here)
                printed = [line.replace(word, here) for line in printed]
            typed.append(command)
            if (started := re.fullmatch(r"sandboxrun ([a-z-]+) (\d)", command)) is not None:
                workers.append(stack.enter_context(run.start(*started.groups())))
                continue
            done = paste(command, run.env, folder)
            if not printed:
                assert done.returncode == 0, done.stderr
                continue
            assert subset(json.loads(printed[0]), json.loads(done.stdout)), f"{command}\n{done.stdout}{done.stderr}"
        running = [worker for worker in workers if worker.poll() is None]
        assert running
        for worker in running:
            worker.terminate()
            err += worker.communicate(timeout=20)[1].decode()
            assert worker.returncode in (0, 143), err
    return typed, err


def subset(shown: Any, real: Any) -> bool:
    """Whether `real` has all that the README shows: of a reply, fields such as ref are left out there."""
    if isinstance(shown, dict) and isinstance(real, dict):
        return all(name in real and subset(value, real[name]) for name, value in shown.items())
    if isinstance(shown, list) and isinstance(real, list):
        return len(shown) == len(real) and all(map(subset, shown, real))
    return bool(shown == real)


def test_every_example_has_a_test_and_a_line_in_the_index() -> None:
    names = {path.parent.name for path in EXAMPLES.glob("*/worker.py")}
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    index = (EXAMPLES / "README.md").read_text()
    for name in names:
        assert f'walk(home, "{name}"' in source or f"examples/{name}" in source, name
        assert f"[{name}]({name}/README.md)" in index


def test_hello(r: redis.Redis, home: Runner) -> None:
    walk(home, "hello", {})


def test_by_hand(r: redis.Redis, home: Runner) -> None:
    walk(home, "by-hand", {})


def test_counter(r: redis.Redis, home: Runner) -> None:
    walk(home, "counter", {})


def test_cart(r: redis.Redis, home: Runner) -> None:
    walk(home, "cart", {})


def test_price(r: redis.Redis, home: Runner) -> None:
    walk(home, "price", {})


def test_notify(r: redis.Redis, home: Runner) -> None:
    walk(home, "notify", {})
    assert r.xlen("mail:req:x") == 1


def test_shop_is_one_worker_or_four(r: redis.Redis, home: Runner) -> None:
    typed, _ = walk(home, "shop", {})
    assert sum(re.fullmatch(r"sandboxrun \w+ 1", command) is not None for command in typed) == 5


def test_the_page_about_splitting_a_service(r: redis.Redis, home: Runner, tmp_path: Path) -> None:
    page = ROOT / "docs" / "split-a-service.md"
    script = page.read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "worker.py").write_text(script)
    follow(home, page, tmp_path, {})


def test_fetch_reaches_the_granted_host_and_no_other(r: redis.Redis, home: Runner, host: RawHost) -> None:
    host.files["/"] = body(PAGE, "text/html; charset=utf-8")
    at = {
        "https://example.com": host.url,
        "example.com:443": f"127.0.0.1:{host.port}",
        "https://example.org": f"http://127.0.0.2:{host.port}",
        "example.org:443": f"127.0.0.2:{host.port}",
    }
    _, err = walk(home, "fetch", at)
    assert f"grant it with: --allow-net=127.0.0.2:{host.port} (field allowNet of fetch:1:h)" in err
    assert len(host.requests) == 1


def test_fan_out_asks_at_the_same_time_and_says_which_server_failed(
    r: redis.Redis, home: Runner, host: RawHost
) -> None:
    host.files["/"] = body(PAGE, "text/html")
    at = {
        "https://example.com": host.url,
        "https://example.org": host.url,
        "example.com:443,example.org:443": f"127.0.0.1:{host.port}",
    }
    walk(home, "fan-out", at)

    together = threading.Barrier(10)

    def meet(handler: Any) -> None:
        together.wait(20)  # no answer before ten are asked
        body(b"")(handler)

    host.files["/meet"] = meet
    with home.start("fan-out", "1") as process, client.Client(home.env["REDIS_URL"]) as c:
        urls = [f"{host.url}/meet"] * 10 + ["http://127.0.0.2:1/", "nonsense", f"{host.url}/no"]
        servers = c.call("fan-out", {"urls": urls}, timeout=30)["servers"]
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert [server.get("status") for server in servers] == [200] * 10 + [None, None, 404]
    assert servers[10]["error"] and servers[11]["error"]
    assert b"grant it with: --allow-net=127.0.0.2:1 (field allowNet of fan-out:1:h)" in err
