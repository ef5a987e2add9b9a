"""Make docs/page.png: the page of an agent with fifty workers, in Debian's Chromium.

    python docs/record_page.py [FILE]        (with the extra `test`)

A real agent with a Redis of its own: one worker is stuck, one crashes, one was refused something. Chromium runs as an
ordinary user, also if this is root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from sandboxrun.redis import embedded

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1180, 1160
NOBODY = 65534
CHROMIUM = shutil.which("chromium")
SECONDS = 60
TRAFFIC_SECONDS = 12  # the page's rates are of the last seconds
GREETER = """\
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"greeting": f"Hello, {request.data['name']}!"}

worker.run()
"""
THUMBNAIL = """\
import time
from sandboxrun import worker

@worker.handler
def handle(request):
    time.sleep(request.data.get("seconds", 0.02))
    return {}

worker.run()
"""
BOT = """\
import socket
from sandboxrun import worker

@worker.handler
def handle(request):
    if request.data.get("report"):
        socket.create_connection(("192.0.2.7", 443))
    return {}

worker.run()
"""
IMPORTER = "import json\n\nprint(json.loads('{}')['chat_id'])\n"
WORKERS = {"greeter": (30, GREETER), "thumbnail": (14, THUMBNAIL), "bot": (5, BOT), "importer": (1, IMPORTER)}


def recorded() -> bytes:
    """The picture, as PNG."""
    with tempfile.TemporaryDirectory() as name, embedded.server() as url:
        home, client = Path(name).resolve(), redis.Redis.from_url(url, decode_responses=True)
        for type_, (count, script) in WORKERS.items():
            (home / type_).mkdir()
            (home / type_ / "worker.py").write_text(script)
            fields = {"url": str(home / type_), "version": "local", "count": count, "limitHandler": "3"}
            client.hset(f"{type_}:h", mapping=fields)
            client.xgroup_create(f"{type_}:req:x", "worker", "0", mkstream=True)
        with agent(home, url) as page:
            until(lambda: running(page) == 49)
            ended = threading.Event()
            thread = threading.Thread(target=traffic, args=(client, ended))
            thread.start()
            try:
                time.sleep(TRAFFIC_SECONDS)
                send(client, "bot", report=True)
                send(client, "thumbnail", seconds=3600)
                until(lambda: "stuck" in states(page))
                return screenshot(f"{page}/?still", WIDTH, HEIGHT)
            finally:
                ended.set()
                thread.join()


@contextlib.contextmanager
def agent(home: Path, url: str) -> Iterator[str]:
    """The agent of all types; the address of its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("sandboxrun")
    process = subprocess.Popen(
        [program, "agent", *WORKERS, "--page", address],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "REDIS_URL": url},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(SECONDS)


def traffic(client: redis.Redis, ended: threading.Event) -> None:
    """Some requests a second, until `ended`; one greeter in fifty is asked without a name."""
    number = 0
    while not ended.wait(0.05):
        number += 1
        send(client, "greeter", **({"name": "world"} if number % 50 else {}))
        if number % 4 == 0:
            send(client, "thumbnail")
            send(client, "bot")


def send(client: redis.Redis, type_: str, **data: Any) -> None:
    client.xadd(f"{type_}:req:x", {"ref": os.urandom(8).hex(), "type": type_, "data": json.dumps(data)})


def states(page: str) -> list[str]:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{page}/status.json", timeout=5) as reply:
        status = json.load(reply)
        return [worker["state"] for each in status["types"] for worker in each["workers"]]
    return []


def running(page: str) -> int:
    return states(page).count("running")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def screenshot(url: str, width: int, height: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="page", dir="/tmp") as name:
        home = Path(name)
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
        picture = home / "page.png"
        command = [
            str(CHROMIUM), "--headless", "--no-first-run", "--disable-gpu", "--hide-scrollbars", "--no-proxy-server",
            f"--user-data-dir={home}/profile", f"--window-size={width},{height}", f"--screenshot={picture}",
            url,
        ]  # fmt: skip
        environment = {"HOME": name, "TMPDIR": name, "PATH": os.environ["PATH"]}
        as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(command, env=environment, cwd=home, check=True, timeout=60, capture_output=True, **as_user)
        return picture.read_bytes()


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "page.png"
    target.write_bytes(recorded())


if __name__ == "__main__":
    main()
