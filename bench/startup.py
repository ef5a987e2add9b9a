"""The cost of a start compared with Deno and plain Python: all contenders in turn, by rounds.

    pip install -e '.[bench-startup]'; apt-get install bubblewrap    # a missing one is left out, with a line
    python bench/startup.py [--rounds N] [--only NAME,…]
    python bench/startup.py --fleet N                                # N workers started at once, ours and Deno's
    python bench/startup.py --profile                                # the phases of our start and their times

One request waits in the stream, and requestLimit is 1. `first reply`: from the launch of the runner until a BRPOP of the
bench has the reply. `exit`: until the runner has ended. A figure is the median over the rounds, followed by the median of its
ratio to Deno in the same round. Only ratios are comparable between machines. Everything stays on loopback.

Memory is sampled in a separate launch with requestLimit 2, because reading /proc slows down the process that is read. It is
the peak of all samples, from the launch until the first reply is there and the worker waits for the second request, over all
processes of the runner's tree. `PSS`: the sum of their proportional shares, which the kernel splits with every other process
that maps the same file, also with this one. `RSS`: the sum of their resident sets. `HWM`: the sum of their peaks as the kernel
counts them.
"""

import argparse
import compileall
import contextlib
import importlib.util
import json
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import redis
from raw_host import raw_host

from sandboxrun.redis import embedded

HERE = Path(__file__).resolve().parent
SECONDS = 60
OURS = """\
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"text": request.data["text"]}

worker.run()
"""
BASE = "Deno"
MIB = 1024  # of the KiB that /proc shows


@dataclass
class Contender:
    """A way to run TYPE 1. `fields`: of the hash. `command`: a function of the id."""

    name: str
    type: str
    fields: dict[str, str]
    command: list[str]
    env: dict[str, str]
    first: list[float] = field(default_factory=list)  # ms
    exit: list[float] = field(default_factory=list)  # ms
    memory: list[tuple[float, ...]] = field(default_factory=list)  # MiB: PSS, RSS, HWM, processes


class Tree:
    """The processes of one launch, and their peak of memory."""

    def __init__(self, pid: int) -> None:
        self._root, self._peaks = pid, {}
        self.pss = self.rss = 0

    def sample(self) -> None:
        """Take a sample. The earlier samples of a process that has ended count too."""
        pss = rss = 0
        for pid in self._pids():
            try:
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    found = {line.split()[0]: int(line.split()[1]) for line in file.readlines()[1:]}
                with open(f"/proc/{pid}/status") as file:
                    high = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
            except (OSError, StopIteration):
                continue
            pss, rss = pss + found["Pss:"], rss + found["Rss:"]
            self._peaks[pid] = max(high, self._peaks.get(pid, 0))
        self.pss, self.rss = max(pss, self.pss), max(rss, self.rss)

    def peaks(self) -> tuple[float, ...]:
        return self.pss / MIB, self.rss / MIB, sum(self._peaks.values()) / MIB, float(len(self._peaks))

    def _pids(self) -> list[int]:
        found = [self._root]
        for pid in found:
            with contextlib.suppress(OSError):
                for tid in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{tid}/children") as file:
                        found += map(int, file.read().split())
        return found


class Bench:
    def __init__(self, url: str, folder: Path, host_url: str) -> None:
        self.url, self.folder, self.host_url = url, folder, host_url
        self.r = redis.Redis.from_url(url, decode_responses=True, socket_timeout=SECONDS + 5)
        self.r.ping()
        self.contenders = [*self._sandboxrun(), *self._deno(), *self._plain()]

    def _env(self, home: str, **more: str) -> dict[str, str]:
        path = self.folder / home
        path.mkdir(exist_ok=True)
        return {"PATH": "/usr/bin:/bin", "HOME": str(path), "LANG": "C.UTF-8", **more}

    def _sandboxrun(self) -> list[Contender]:
        """The installed command, with its own home folder and so the default policy."""
        # As pip compiles every file that it copies; an editable installation has only what a run could write.
        compileall.compile_dir(HERE.parent / "sandboxrun", quiet=1)
        program = str(Path(sys.executable).with_name("sandboxrun"))
        script = self.folder / "ours" / "worker.py"
        script.parent.mkdir()
        script.write_text(OURS)
        env = self._env("home", REDIS_URL=self.url)
        cached = {"url": f"{self.host_url}/bench/worker/{{version}}/worker.py", "version": "v1.0.0"}
        return [
            Contender("sandboxrun, local", "ours", {"url": str(script), "version": "local"}, [program, "ours"], env),
            Contender("sandboxrun, cached URL", "cached", cached, [program, "cached"], env),
        ]

    def _deno(self) -> list[Contender]:
        if importlib.util.find_spec("deno") is None:
            return skip("Deno", "pip install deno")
        import deno

        program = str(deno.find_deno_bin())
        env = self._env("deno", DENO_DIR=str(self.folder / "deno-dir"), DENO_NO_UPDATE_CHECK="1", NO_COLOR="1")
        host = self.url.rpartition("@")[2]
        command = [program, "run", "--quiet", "--no-prompt", "--cached-only", "--no-config", "--no-lock"]
        command += [f"--allow-net={host}", f"--allow-run={program}", str(HERE / "deno" / "runner.ts"), "deno"]
        rest = [program, self.url]
        return [Contender(BASE, "deno", {"url": str(HERE / "deno" / "worker.ts")}, [*command, "{id}", *rest], env)]

    def _plain(self) -> list[Contender]:
        """redis-py in both processes: with nothing around the worker, with bwrap, and with uv as the runner."""
        runner, script = str(HERE / "plain" / "runner.py"), str(HERE / "plain" / "worker.py")
        env = self._env("plain", REDIS_URL=self.url)

        def plain(name: str, type_: str, *prefix: str) -> Contender:
            command = [sys.executable, runner, type_, "{id}", self.url, *prefix]
            return Contender(name, type_, {"url": script}, command, env)

        found = [plain("redis-py, no sandbox", "plain")]
        if shutil.which("bwrap"):
            options = "--unshare-all --share-net --die-with-parent --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp"
            found.append(plain("redis-py, bwrap", "bwrap", "bwrap", *options.split()))
        else:
            skip("bwrap", "apt-get install bubblewrap")
        if importlib.util.find_spec("uv") is None:
            return found + skip("uv run", "pip install uv")
        import uv

        # The existing environment: uv resolves nothing and installs nothing.
        command = [uv.find_uv_bin(), "run", "--quiet", "--offline", "--no-project", "--python", sys.executable]
        command += [script, "uv:{id}:h"]
        env = env | {"UV_CACHE_DIR": str(self.folder / "uv-cache"), "VIRTUAL_ENV": sys.prefix}
        return [*found, Contender("uv run, no runner", "uv", {"url": script}, command, env)]

    # --- launches

    def prepare(self, made: Contender, *, limit: int, type_: str | None = None) -> str:
        """A hash and a fresh stream with one request; its ref."""
        type_ = type_ or made.type
        self.r.delete(f"{type_}:req:x", f"{type_}:res:x")
        self.r.hset(f"{type_}:1:h", mapping={**made.fields, "requestLimit": str(limit)})
        return self.ask(type_)

    def ask(self, type_: str) -> str:
        ref = os.urandom(8).hex()
        self.r.xadd(f"{type_}:req:x", {"ref": ref, "type": type_, "data": '{"text": "hi"}'})
        return ref

    def launch(self, made: Contender, *, type_: str | None = None, **env: str) -> subprocess.Popen:
        words = [word.replace("{id}", "1") for word in made.command]
        if "{id}" not in " ".join(made.command):
            words.append("1")  # sandboxrun TYPE ID
        if type_ is not None:  # one of a fleet
            words = [type_ if word == made.type else word for word in words]
        devnull = subprocess.DEVNULL
        with open(self.folder / "errors", "wb") as errors:
            return subprocess.Popen(
                words, env=made.env | env, cwd=self.folder, stdin=devnull, stdout=devnull, stderr=errors
            )

    def reply(self, name: str, ref: str) -> None:
        found = self.r.brpop([f"res:{ref}"], timeout=SECONDS)
        if found is None or json.loads(found[1])["text"] != "hi":
            sys.exit(f"{name}: no reply, or a wrong one ({found}): {self.errors()}")

    def errors(self) -> str:
        return (self.folder / "errors").read_text(errors="replace").strip()

    def end(self, name: str, process: subprocess.Popen) -> None:
        # Not wait(SECONDS): it polls with growing pauses, so it would be late by up to half a run.
        pidfd = os.pidfd_open(process.pid)
        select.select([pidfd], [], [], SECONDS)
        os.close(pidfd)
        if process.wait(0) != 0:
            sys.exit(f"{name}: exit code {process.returncode}: {self.errors()}")

    def timed(self, made: Contender, **env: str) -> tuple[int, int, int]:
        """Launch, first reply and exit, in ns of CLOCK_MONOTONIC."""
        ref = self.prepare(made, limit=1)
        begin = time.monotonic_ns()
        process = self.launch(made, **env)
        self.reply(made.name, ref)
        replied = time.monotonic_ns()
        self.end(made.name, process)
        return begin, replied, time.monotonic_ns()

    def check(self, made: Contender) -> None:
        """Check that this contender did what all do: answer, acknowledge, leave a trace, remove `pid`."""
        stream = f"{made.type}:req:x"
        [(_, request)], [(_, answer)] = self.r.xrange(stream), self.r.xrange(f"{made.type}:res:x")
        trace = f"req:{request['ref']}:h"
        held = {
            "acknowledged": self.r.xpending(stream, "worker")["pending"] == 0,
            "answered with code 200": (answer["ref"], answer["code"]) == (request["ref"], "200"),
            "trace": "received" in json.loads(self.r.hget(trace, f"{made.type}Trace") or "{}")
            and self.r.ttl(trace) > 0,
            "no pid left": not self.r.hexists(f"{made.type}:1:h", "pid"),
        }
        if missing := [what for what, holds in held.items() if not holds]:
            sys.exit(f"{made.name} is no equal of the others: {', '.join(missing)}")

    def weighed(self, made: Contender) -> tuple[float, ...]:
        ref = self.prepare(made, limit=2)
        process = self.launch(made)
        tree, there = Tree(process.pid), threading.Event()

        def watch() -> None:
            while not there.wait(0.002):
                tree.sample()
            tree.sample()

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.reply(made.name, ref)
        there.set()
        watcher.join()
        ref = self.ask(made.type)
        self.reply(made.name, ref)
        self.end(made.name, process)
        return tree.peaks()

    # --- output

    def table(self, rounds: int) -> None:
        for made in self.contenders:  # caches, bytecode, what was agreed to
            self.timed(made)
            self.check(made)
            self.timed(made)
        for number in range(rounds):
            turn = random.Random(number).sample(self.contenders, len(self.contenders))
            for made in turn:  # in another order each time, because one contender leaves costs for the next
                begin, replied, ended = self.timed(made)
                made.first.append((replied - begin) / 1e6)
                made.exit.append((ended - begin) / 1e6)
                made.memory.append(self.weighed(made))
        base = next((made for made in self.contenders if made.name == BASE), None)
        print(f"medians of {rounds} rounds; in brackets the median of the ratio to {BASE} in the same round")
        heads = ("first reply ms", "exit ms", "PSS MiB", "RSS MiB", "HWM MiB")
        print(f"{'':24}" + "".join(f"{head:>18}" for head in heads) + "  processes")
        for made in self.contenders:
            print(
                f"{made.name:24}"
                + "".join(
                    f"{shown(mine, theirs):>18}"
                    for mine, theirs in zip(columns(made), columns(base) if base else [None] * 5, strict=True)
                )
                + f"  {max(found[3] for found in made.memory):9.0f}"
            )

    def fleet(self, count: int) -> None:
        """Each worker has its own type, hash and stream, so that it cannot take the request of another."""
        print(f"{count} workers started at once: until all have replied, and memory while all of them wait")
        print(f"{'':24}{'seconds':>10}{'ms each':>10}{'PSS each':>10}{'RSS each':>10}  MiB")
        for made in (found for found in self.contenders if found.name in (BASE, "sandboxrun, local")):
            types = [f"{made.type}{number}" for number in range(count)]
            self.timed(made)  # warm
            refs = [self.prepare(made, limit=2, type_=type_) for type_ in types]
            begin = time.monotonic()
            processes = [self.launch(made, type_=type_) for type_ in types]
            for ref in refs:
                self.reply(made.name, ref)
            seconds = time.monotonic() - begin
            trees = [Tree(process.pid) for process in processes]
            for tree in trees:
                tree.sample()
            for ref in [self.ask(type_) for type_ in types]:
                self.reply(made.name, ref)
            for process in processes:
                self.end(made.name, process)
            pss, rss = (sum(getattr(tree, what) for tree in trees) / MIB / count for what in ("pss", "rss"))
            print(f"{made.name:24}{seconds:10.2f}{seconds / count * 1e3:10.1f}{pss:10.1f}{rss:10.1f}")

    def profile(self, rounds: int) -> None:
        """The median time of each mark over the rounds."""
        for made in self.contenders[:2]:
            self.timed(made)
            passed: dict[str, list[float]] = {}
            for number in range(rounds):
                path = self.folder / f"trace-{made.type}-{number}"
                begin, replied, ended = self.timed(made, SANDBOXRUN_TRACE_STARTUP=str(path))
                marks = [line.split(" ", 1) for line in path.read_text().splitlines()]
                marks += [[str(replied), "= first reply"], [str(ended), "= exit"]]
                once = {name: int(at) for at, name in reversed(marks)}  # the first of a name
                for name, at in once.items():
                    passed.setdefault(name, []).append((at - begin) / 1e6)
            print(f"{made.name}: ms since the launch, and since the mark before (medians of {rounds})")
            before = 0.0
            for name, found in sorted(passed.items(), key=lambda item: statistics.median(item[1])):
                at = statistics.median(found)
                print(f"  {at:8.2f} {at - before:+8.2f}  {name}")
                before = at


def columns(made: Contender) -> list[list[float]]:
    return [made.first, made.exit, *([found[n] for found in made.memory] for n in range(3))]


def shown(mine: list[float], theirs: list[float] | None) -> str:
    ratio = ""
    if theirs is not None:
        ratio = f" ({statistics.median(a / b for a, b in zip(mine, theirs, strict=True)):.2f})"
    return f"{statistics.median(mine):.1f}{ratio}"


def skip(name: str, remedy: str) -> list[Contender]:
    print(f"{name} is left out: it is not installed ({remedy})", file=sys.stderr)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description="What a start costs beside Deno and beside plain Python.")
    parser.add_argument("--rounds", type=int, default=40, metavar="N")
    parser.add_argument("--only", metavar="NAME,…", help="contenders whose name has one of these in it")
    parser.add_argument("--fleet", type=int, metavar="N", help="start N workers at once instead")
    parser.add_argument("--profile", action="store_true", help="print where the time of a start goes instead")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="sandboxrun-bench-") as folder,
        embedded.server() as url,
        raw_host() as host,
    ):
        host.files["/bench/worker/v1.0.0/worker.py"] = OURS
        bench = Bench(url, Path(folder), host.url)
        if options.only:
            names = options.only.split(",")
            bench.contenders = [made for made in bench.contenders if any(name in made.name for name in names)]
        if options.profile:
            bench.profile(options.rounds)
        elif options.fleet:
            bench.fleet(options.fleet)
        else:
            bench.table(options.rounds)


if __name__ == "__main__":
    main()
