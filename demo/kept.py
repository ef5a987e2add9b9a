"""What `demo/run.sh --keep` leaves behind: a process with an embedded Redis and the server for scripts, until clean.sh."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from story import ROOT, SECONDS, STATE, DemoError

from sandboxrun.redis import embedded

RECORD = STATE / "kept.json"
LOG = STATE / "kept.log"


def start() -> tuple[str, int]:
    """The URL of Redis, and the port of the server for scripts, of a process that outlives this one."""
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("demo.py"), "hold"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + SECONDS
    while (record := _record()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise DemoError(LOG.read_text().strip().removeprefix("error: ") or f"{LOG} says why it did not start")
        time.sleep(0.02)
    return record["url"], record["port"]


def hold() -> None:
    """Be that process, until SIGTERM."""
    with contextlib.ExitStack() as stack:
        url = os.environ.get("REDIS_URL") or stack.enter_context(embedded.server())
        port = stack.enter_context(serve_scripts())
        record = {"pid": os.getpid(), "started": _started(os.getpid()), "url": url, "port": port}
        fd = os.open(f"{RECORD}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w") as file:
            json.dump(record, file)
        os.replace(f"{RECORD}.new", RECORD)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def url() -> str | None:
    """Of the Redis that is kept, or was."""
    record = _record()
    return record["url"] if record is not None and holder() is not None else None


def holder() -> int | None:
    """The pid of the process that holds it, if it runs."""
    record = _record()
    if record is None or record["started"] is None or _started(record["pid"]) != record["started"]:
        return None
    return int(record["pid"])


def stop() -> None:
    pid = holder()
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while holder() is not None and time.monotonic() < deadline:
            time.sleep(0.02)


def _record() -> dict[str, object] | None:
    try:
        record: dict[str, object] = json.loads(RECORD.read_text())
    except FileNotFoundError:
        return None
    return record


def _started(pid: int) -> int | None:
    """Field 22 of proc_pid_stat(5), by which a process is told from a later one of the same number; None for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


@contextlib.contextmanager
def serve_scripts() -> Iterator[int]:
    """The repository's demo/worker.py at /OWNER/REPO/VERSION/demo/worker.py on loopback, as a raw host would have it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.split("/")
            known = len(parts) == 6 and parts[4:] == ["demo", "worker.py"]
            body = (ROOT / "demo" / "worker.py").read_bytes() if known else b"404: Not Found"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
