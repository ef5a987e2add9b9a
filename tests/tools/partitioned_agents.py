"""Three agents on three hosts, of which one is cut off from Redis for 30 s: when each type has its workers again, what is lost.

    sudo .venv/bin/python tests/tools/partitioned_agents.py        (needs iproute2; about two minutes)

A host is a network namespace with a pid namespace of its own. Prints the seconds until `count` workers run on the hosts that
are left, and how many requests of those sent meanwhile were answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

HOSTS = ("a", "b", "c")
COUNT = 9
CUT_SECONDS = 30.0
FOUND_SECONDS = 25.0  # within which the workers run elsewhere
PASSWORD = "partitioned"
WORKER = """\
from sandboxrun import worker

@worker.handler
def handle(request):
    return {}

worker.run()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name, network() as hub, server(hub, Path(name)) as r:
        (Path(name) / "worker.py").write_text(WORKER)
        r.hset("t:h", mapping={"url": name, "version": "local"})
        r.xgroup_create("t:req:x", "worker", "0", mkstream=True)
        with contextlib.ExitStack() as agents:
            for host in HOSTS:
                agents.enter_context(agent(host, Path(name) / host))
            until(lambda: r.hlen("sandboxrun:agents") == len(HOSTS), 60)
            r.hset("t:h", "count", COUNT)
            until(lambda: len(running(r)) == COUNT, 60)
            before = running(r)
            lost_host = max(before.values(), key=lambda host: sum(each == host for each in before.values()))
            print(f"{COUNT} workers run on {len(set(before.values()))} hosts; one is cut off")
            sent = send(r, 100)
            which = next(host for host in HOSTS if namespace_host(host) == lost_host)
            ip("-n", hub, "link", "set", f"sr-{which}", "down")
            cut = time.monotonic()
            found = 0.0
            while time.monotonic() < cut + CUT_SECONDS:
                sent += send(r, 10)
                answered(r, sent)
                elsewhere = [host for host in running(r).values() if host != lost_host]
                if len(elsewhere) == COUNT and not found:
                    found = time.monotonic() - cut
                time.sleep(0.1)
            ip("-n", hub, "link", "set", f"sr-{which}", "up")
            print(
                f"after {found:.1f} s {COUNT} workers ran on the other hosts" if found else "they never ran elsewhere"
            )
            sent += send(r, 100)
            until(lambda: len(answered(r, sent)) == len(sent), 90)
            until(lambda: len(running(r)) == COUNT, 30)
        lost = len(sent) - len(answered(r, sent))
        print(f"{len(sent)} requests sent, {lost} lost; {len(running(r))} pids left after the agents' end")
        if lost or not 0 < found <= FOUND_SECONDS:
            sys.exit(1)


@contextlib.contextmanager
def network() -> Iterator[str]:
    """A namespace with Redis's address, and one for each host, each with a cable to it."""
    hub = f"sr-{os.getpid()}"
    names = [hub, *(f"{hub}-{host}" for host in HOSTS)]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, host in enumerate(HOSTS, 1):
            ip("-n", hub, "link", "add", f"sr-{host}", "type", "veth", "peer", "name", "eth0", "netns", f"{hub}-{host}")
            for name, device, end in ((hub, f"sr-{host}", 1), (f"{hub}-{host}", "eth0", 2)):
                ip("-n", name, "address", "add", f"10.77.{number}.{end}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
        yield hub
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextlib.contextmanager
def server(hub: str, folder: Path) -> Iterator[redis.Redis]:
    path = f"{folder}/redis.sock"
    options = [
        "--port",
        "6379",
        "--protected-mode",
        "no",
        "--unixsocket",
        path,
        "--requirepass",
        PASSWORD,
        "--save",
        "",
    ]
    process = subprocess.Popen(["ip", "netns", "exec", hub, "redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        until(lambda: os.path.exists(path), 10)
        yield redis.Redis(unix_socket_path=path, password=PASSWORD, decode_responses=True)
    finally:
        process.terminate()
        process.wait(10)


_agents: dict[str, subprocess.Popen[bytes]] = {}
_answered: set[str] = set()
_last = ["0"]


@contextlib.contextmanager
def agent(host: str, home: Path) -> Iterator[None]:
    home.mkdir()
    number = HOSTS.index(host) + 1
    name = f"sr-{os.getpid()}-{host}"
    program = str(Path(sys.executable).with_name("sandboxrun"))
    command = [
        "ip",
        "netns",
        "exec",
        name,
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        program,
        "agent",
        "t",
    ]
    url = f"redis://:{PASSWORD}@10.77.{number}.1:6379"
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "REDIS_URL": url}
    with open(f"{home}.log", "wb") as log:
        _agents[host] = process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield
    finally:
        subprocess.run(["pkill", "-TERM", "-P", str(process.pid)], check=False)  # unshare passes no signal on
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait(20)


def namespace_host(host: str) -> str:
    """As `pidHost` names this host."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (child,) = Path(f"/proc/{_agents[host].pid}/task/{_agents[host].pid}/children").read_text().split()
    return f"{boot}/{os.stat(f'/proc/{child}/ns/pid').st_ino}"


def running(r: redis.Redis) -> dict[str, str]:
    """The host of each worker that has a pid and was seen within its lease."""
    found = {}
    now = r.time()[0]
    for number in range(1, COUNT + 1):
        pid, host, seen = r.hmget(f"t:{number}:h", "pid", "pidHost", "pidSeen")
        if pid and host and seen and now - int(seen) < 20:
            found[str(number)] = host
    return found


def send(r: redis.Redis, count: int) -> list[str]:
    refs = [os.urandom(8).hex() for _ in range(count)]
    with r.pipeline(transaction=False) as pipeline:
        for ref in refs:
            pipeline.xadd("t:req:x", {"ref": ref, "type": "t", "data": json.dumps({})})
        pipeline.execute()
    return refs


def answered(r: redis.Redis, refs: list[str]) -> set[str]:
    """By the stream of replies, from which the workers remove old ones: so this is asked again and again."""
    entries = r.xrange("t:res:x", min=f"({_last[0]}")
    _last[:] = [entries[-1][0]] if entries else _last
    _answered.update(fields["ref"] for _, fields in entries)
    return _answered & {*refs}


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


if __name__ == "__main__":
    main()
