"""Random system calls from inside the sandbox, with somebody watching outside.

    python tests/kernel/fuzz_syscalls.py [SEED] [BATCHES] [CALLS]

A batch is one confined process that makes CALLS calls (fuzz_worker.py). It may end by its own fault. What must not
happen: the supervisor fails or hangs, anything outside changes, another process notices, a listener hears from it.
The last line is the figures as JSON; the exit code is 1 where there are findings. A batch repeats with its seed.
"""

import array
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyseccomp

from sandboxrun.sandbox.compile import seccomp
from sandboxrun.sandbox.compile.grants import Grants

HERE = Path(__file__).parent
BATCH_SECONDS = 60
SLOTS = 1024
STUCK, BROKEN = 77, 78
EXPECTED_LINE = re.compile(
    r'Requires net access to "[^"]+"; grant it with: --allow-net=\S+ \(field allowNet of test:1:h\)'
    r"|[0-9]+ different targets were refused; further ones are not shown"
    r"|warning: .* has reached its limit of .*"
    r"|warning: test:1:h was ended by (SIG[A-Z0-9+]+|signal \d+) \(.*"
)
MEMORY = ["mmap", "munmap", "mprotect", "mremap", "madvise", "mlock", "munlock", "mlock2", "msync", "mincore", "pkey_mprotect", "shmat",
          "mbind", "remap_file_pages", "mseal", "map_shadow_stack"]  # fmt: skip
SIGNALS = {"kill": 1, "tkill": 1, "tgkill": 2, "rt_sigqueueinfo": 1, "rt_tgsigqueueinfo": 2, "pidfd_send_signal": 1}
VICTIM = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # what is sent stays pending, and can be seen
print("ready", flush=True)
while True:
    time.sleep(3600)
"""


class Listeners:
    """One of each kind, on loopback; `heard` is what reached those that are not granted."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[str] = []
        self.granted_connections = 0
        self.granted = self._stream(socket.AF_INET, ("127.0.0.1", 0), "")
        self.tcp4 = self._stream(socket.AF_INET, ("127.0.0.1", 0), "TCP")
        self.tcp6 = self._stream(socket.AF_INET6, ("::1", 0), "TCP on ::1")
        self.unix = [str(folder / "stream.sock"), f"\0sandboxrun-fuzz-{os.getpid()}", str(folder / "datagram.sock")]
        self._stream(socket.AF_UNIX, self.unix[0], "Unix stream")
        self._stream(socket.AF_UNIX, self.unix[1], "abstract Unix stream")
        self._datagrams(socket.AF_UNIX, self.unix[2], "Unix datagram")
        # UDP at the ports that TCP has, the granted one too: one address names them all.
        for port in (self.granted, self.tcp4):
            self._datagrams(socket.AF_INET, ("127.0.0.1", port), "UDP")
        self._datagrams(socket.AF_INET6, ("::1", self.tcp6), "UDP on ::1")

    def _stream(self, family: int, address: object, name: str) -> int:
        server = socket.socket(family)
        server.bind(address)
        server.listen(64)

        def accept() -> None:
            while True:
                peer, _ = server.accept()
                peer.close()
                if name:
                    self.heard.append(name)
                else:
                    self.granted_connections += 1

        threading.Thread(target=accept, daemon=True).start()
        return server.getsockname()[1] if family != socket.AF_UNIX else 0

    def _datagrams(self, family: int, address: object, name: str) -> None:
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind(address)

        def receive() -> None:
            while True:
                self.heard.append(f"{name}: {server.recv(100)!r}")

        threading.Thread(target=receive, daemon=True).start()


def canaries(folder: Path) -> None:
    (folder / "folder").mkdir()
    for name, mode in (("secret", 0o600), ("public", 0o666), ("folder/inner", 0o644), ("program", 0o755)):
        path = folder / name
        path.write_text("#!/bin/sh\nexit 0\n" if name == "program" else f"canary {name}\n")
        path.chmod(mode)
        os.utime(path, (1_000_000_000, 1_500_000_000))  # an older atime: a read would update it
    (folder / "link").symlink_to("secret")
    folder.chmod(0o777)


def snapshot(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = path.lstat()
        fields = [
            about.st_mode,
            about.st_uid,
            about.st_gid,
            about.st_size,
            about.st_nlink,
            about.st_mtime_ns,
            about.st_ctime_ns,
        ]
        if stat.S_ISREG(about.st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
            with open(fd, "rb") as file:
                fields += [about.st_atime_ns, file.read().hex(), sorted(os.listxattr(path))]
        elif path.is_symlink():
            fields.append(os.readlink(path))
        found[str(path)] = fields
    return found


@contextlib.contextmanager
def victim() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", VICTIM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def condition(process: subprocess.Popen[str]) -> dict[str, object]:
    """Whatever one process can do to another of the same user without touching its memory."""
    pid = process.pid
    if process.poll() is not None:
        return {"ended": process.returncode}
    status = Path(f"/proc/{pid}/status").read_text()
    names = ("SigPnd", "ShdPnd", "SigBlk", "TracerPid", "Threads", "Uid", "Seccomp", "NoNewPrivs")
    return {
        **{name: re.search(rf"^{name}:\t(.*)$", status, re.MULTILINE)[1] for name in names},
        "stopped": re.search(r"^State:\t[TtZX]", status, re.MULTILINE) is not None,
        "limits": Path(f"/proc/{pid}/limits").read_text(),
        "oom": Path(f"/proc/{pid}/oom_score_adj").read_text(),
        "nice": os.getpriority(os.PRIO_PROCESS, pid),
        "scheduler": os.sched_getscheduler(pid),
        "affinity": sorted(os.sched_getaffinity(pid)),
        "group": (os.getpgid(pid), os.getsid(pid)),
        "limit": resource.prlimit(pid, resource.RLIMIT_NOFILE),
    }


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def numbers() -> dict[str, int]:
    found = {}
    for number in range(471):
        with contextlib.suppress(ValueError):  # a hole in the table
            name = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number)
            found[name.decode() if isinstance(name, bytes) else name] = number
    return found


def one_batch(command: list[str], scratch: Path) -> tuple[int, str, list[str]]:
    """(exit code, standard error, findings) of one confined process."""
    findings = []
    with open(scratch.parent / "stderr", "w+b") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            code = process.wait(BATCH_SECONDS)
        except subprocess.TimeoutExpired:
            # The worker, or the supervisor? Take the worker away and see.
            for pid in children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                code = process.wait(10)
            except subprocess.TimeoutExpired:
                findings.append("the supervisor hangs though its worker is gone")
                process.kill()
                code = process.wait()
        errors.seek(0)
        text = errors.read().decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if not EXPECTED_LINE.fullmatch(line)]
    if lines:
        findings.append("the supervisor printed:\n" + "\n".join(lines[-30:]))
    if code < 0:
        findings.append(f"the supervisor was ended by signal {-code}")
    return code, text, findings


def main() -> int:
    seed, batches, calls = ([int(word) for word in sys.argv[1:]] + [1, 10, 3000][len(sys.argv) - 1 :])[:3]
    number_of = numbers()
    rows = seccomp.granted(Grants())
    reached_by = (seccomp.Action.ALLOW, seccomp.Action.ASK)
    allowed = sorted({number_of[rule.name] for rule in rows if rule.name in number_of and rule.action in reached_by})
    issued, reached, succeeded = ([0] * SLOTS for _ in range(3))
    ends: dict[str, int] = {}
    findings: list[str] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sandboxrun-fuzz-", ignore_cleanup_errors=True) as name, victim() as other:
        os.chmod(name, 0o755)
        outside = Path(name, "outside")
        outside.mkdir()
        canaries(outside)
        listeners = Listeners(outside)
        files, before = snapshot(outside), condition(other)
        total = granted = slowest = 0
        for batch in range(batches):
            scratch = Path(name, f"scratch{batch}")
            scratch.mkdir(mode=0o700)
            paths = ["file", "other", "folder", f"{scratch}/file", f"{scratch}/other", f"{scratch}/folder", str(scratch), "folder/x", ".", "..", "", "../outside/secret", "/proc/self/mem", "/proc/1/environ", "/proc/self/exe",
                     "/dev/tty", "/dev/null", "/dev/shm/sandboxrun-fuzz", f"/proc/{other.pid}/mem", f"/proc/{other.pid}/oom_score_adj",
                     *(str(path) for path in outside.rglob("*")), str(outside), str(outside / "new")]  # fmt: skip
            params = {
                "seed": f"{seed}:{batch}", "calls": calls, "numbers": number_of, "allowed": allowed, "memory": MEMORY, "signals": SIGNALS,
                "tcp4": [["127.0.0.1", listeners.granted], ["127.0.0.1", listeners.tcp4], ["127.0.0.2", listeners.granted], ["0.0.0.0", listeners.tcp4]],
                "tcp6": [listeners.tcp6, listeners.granted], "unix": listeners.unix, "paths": paths, "scratch": str(scratch), "victim": other.pid,
            }  # fmt: skip
            from_worker = re.search(r"SHAPES = \{.*?\n\}", (HERE / "fuzz_worker.py").read_text(), re.DOTALL)[0]
            params["shaped"] = [word for word in re.findall(r'"(\w+)":', from_worker) if word in number_of]
            (scratch / "params.json").write_text(json.dumps(params))
            (scratch / "counters").write_bytes(bytes(8 * (32 + 3 * SLOTS) + 4096))
            spec = {
                "script": str(HERE / "fuzz_worker.py"),
                "scratch": str(scratch),
                "allow": {"net": f"127.0.0.1:{listeners.granted},localhost:{listeners.granted}"},
            }
            started = time.monotonic()
            with open(scratch / "counters", "rb") as file:  # the worker may well remove or shorten its own
                code, _, found = one_batch([sys.executable, str(HERE / "confine.py"), json.dumps(spec)], scratch)
                data = file.read()
            slowest = max(slowest, time.monotonic() - started)
            counters = array.array("Q", data[: 8 * (32 + 3 * SLOTS)].ljust(8 * (32 + 3 * SLOTS), b"\0"))
            total += counters[0]
            for kind, column in enumerate((issued, reached, succeeded)):
                for i in range(SLOTS):
                    column[i] += counters[32 + kind * SLOTS + i]
            finished, forked = counters[1], counters[2]
            last = f"{hex(counters[3])}({', '.join(map(hex, counters[4:10]))})"
            end = {0: "finished", STUCK: "stuck", BROKEN: "broken"}.get(
                code, f"signal {code - 128}" if code > 128 else f"code {code}"
            )
            ends[end] = ends.get(end, 0) + 1
            if code == BROKEN:
                print(
                    f"batch {batch}: {data[-2048:].rstrip(bytes(1)).decode('utf-8', 'replace').splitlines()[-1:]}",
                    file=sys.stderr,
                )
            if bool(finished) != (code == 0) or (code not in (0, STUCK, BROKEN) and not 128 < code < 193):
                found.append(f"the worker {'finished' if finished else 'did not finish'}, but the exit code is {code}")
            if forked:
                found.append("the worker forked")
            if (after := snapshot(outside)) != files:
                changed = sorted(k for k in files.keys() | after.keys() if files.get(k) != after.get(k))
                found.append(
                    f"outside the sandbox these files changed: {[(k, files.get(k), after.get(k)) for k in changed]}"
                )
                files = after
            if (now := condition(other)) != before:
                found.append(
                    f"another process changed: {[(k, before.get(k), v) for k, v in now.items() if before.get(k) != v]}"
                )
                before = now
            if Path("/dev/shm/sandboxrun-fuzz").exists():
                found.append("it wrote to /dev/shm")
            if listeners.heard:
                found.append(f"these listeners heard from it: {listeners.heard}")
                listeners.heard = []
            findings += [f"seed {seed}, batch {batch} of {calls} calls, last call {last}: {text}" for text in found]
            shutil.rmtree(scratch, onerror=lambda *_: None)
        granted = listeners.granted_connections
    for text in findings:
        print(f"FINDING {text}")
    figures = {
        "batches": batches, "calls": total, "distinct": sum(map(bool, issued)), "distinct not refused": sum(map(bool, reached)),
        "calls not refused": sum(reached), "calls succeeded": sum(succeeded), "granted connections": granted, "ends": ends,
        "seconds": round(time.monotonic() - begin, 1), "slowest batch": round(slowest, 1), "findings": len(findings),
    }  # fmt: skip
    print(json.dumps(figures))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
