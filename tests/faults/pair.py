"""A redis-server with an append-only file and a replica, and the faults of both."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

import redis
from arena import wait_for
from redis.backoff import NoBackoff
from redis.retry import Retry

from sandboxrun.redis import embedded

START_SECONDS = 20


class Process:
    """One redis-server. It can be killed and started again on the same port."""

    def __init__(self, folder: Path, password: str) -> None:
        self.folder, self.password = folder, password
        folder.mkdir()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        (folder / "users.acl").write_text(f"user default on >{password} ~* &* +@all\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        return redis.Redis(
            port=self.port,
            password=self.password,
            decode_responses=True,
            socket_timeout=30,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self, *settings: str) -> None:
        lines = [
            f"port {self.port}", "bind 127.0.0.1", 'save ""', "appendonly yes", "appendfsync everysec", f"dir {self.folder}",
            f"aclfile {self.folder / 'users.acl'}", f"masterauth {self.password}", "maxmemory-policy noeviction",
            "repl-diskless-sync yes", "repl-diskless-sync-delay 0", "auto-aof-rewrite-percentage 0", *settings,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = self._popen(log)
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join([*lines, ""]).encode())
        self._process.stdin.close()
        wait_for(self.answers, START_SECONDS)

    def _popen(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [embedded.find_server(), "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # With SIGXFSZ ignored, a write past RLIMIT_FSIZE is an error, as on a full disk. setrlimit(2)
            preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        )

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with contextlib.suppress(redis.ConnectionError), self.client() as r:
            return bool(r.ping())
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Delete its append-only file."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)


class Pair:
    """The server that serves, and its replica."""

    def __init__(self, folder: Path) -> None:
        self.password = secrets.token_hex(16)
        self.master = Process(folder / "a", self.password)
        self.replica = Process(folder / "b", self.password)
        self._processes = (self.master, self.replica)

    def start(self) -> None:
        self.master.start()
        self._follow()

    def close(self) -> None:
        for process in self._processes:
            process.kill()

    def _follow(self) -> None:
        self.replica.start(f"replicaof 127.0.0.1 {self.master.port}")
        self.wait_until_followed()

    def wait_until_followed(self) -> None:
        """Wait until the replica has everything that the master has now."""
        with self.master.client() as r:
            r.set("followed", time.monotonic_ns())

            def followed() -> bool:
                return any(int(one["lag"]) >= 0 and int(one["offset"]) >= target for one in replicas(r))

            target = int(r.info("replication")["master_repl_offset"])
            wait_for(followed, START_SECONDS)

    def restart_with_file(self) -> None:
        self.master.kill()
        self.master.start()

    def restart_empty(self) -> None:
        """Both, because a replica would bring back the data of the master."""
        for process in self._processes:
            process.kill()
            process.forget()
        self.start()

    def stop_following(self) -> None:
        """Cut the replication."""
        with self.replica.client() as r:
            r.config_set("masterauth", "wrong")
            r.client_kill_filter(_type="master")

    def promote(self) -> None:
        """The replica takes over from the lost master, which then follows it and loses what it alone had."""
        self.master.kill()
        with self.replica.client() as r:
            r.replicaof("NO", "ONE")
        self.master, self.replica = self.replica, self.master
        self.replica.forget()

    def follow_again(self) -> None:
        self._follow()

    # --- the disk

    def fill_disk(self) -> None:
        """No file of the master can grow any more. Returns once the master has noticed."""
        growing = max((self.master.folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
        size = growing.stat().st_size
        resource.prlimit(self.master.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        with self.master.client() as r:
            wait_for(lambda: self._refuses(r, "MISCONF"), START_SECONDS)

    def empty_disk(self) -> None:
        resource.prlimit(self.master.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with self.master.client() as r:
            wait_for(lambda: not self._refuses(r, "MISCONF"), START_SECONDS)

    # --- memory

    def fill_memory(self) -> None:
        with self.master.client() as r:
            r.config_set("maxmemory", 1)
            wait_for(lambda: self._refuses(r, "OOM"), START_SECONDS)

    def empty_memory(self) -> None:
        with self.master.client() as r:
            r.config_set("maxmemory", 0)

    def _refuses(self, r: redis.Redis, word: str) -> bool:
        try:
            r.set("probe", "x" * 100)
        except redis.RedisError as error:
            return word in f"{type(error).__name__} {error}" or (word == "OOM" and "maxmemory" in str(error))
        return False


def replicas(r: redis.Redis) -> list[dict[str, str]]:
    found = r.info("replication")
    return [found[f"slave{number}"] for number in range(int(found["connected_slaves"]))]


def stop(pid: int) -> None:
    """Send SIGSTOP and wait until the kernel reports the process as stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid) == "T", START_SECONDS)


def state(pid: int) -> str:
    """proc_pid_stat(5), field 3; nothing if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
