"""The cost of files and packages: starts with and without them, and a cold install beside pip and uv, in paired rounds.

    pip install -e '.[bench-startup]'
    python bench/packages.py [--rounds N] [--installs N]

Start: from the launch of `sandboxrun TYPE 1` until a BRPOP of the bench has the reply. `environment` imports four
packages from the environment of its lock; `site-packages` imports the same packages from those installed beside
sandboxrun. `ten files` imports nine modules beside the script, `one file` none. A figure is the median, followed by the
median difference and ratio to its partner in the same round.

Install: ten wheels from one folder on this disk, with empty caches. `sandboxrun`: from `sandboxrun TYPE 1` to the reply,
minus a start without packages. `pip install` and `uv pip install`: into a new, existing environment. Only ratios are
comparable between machines. Everything but the download of the wheels stays on loopback.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import redis  # noqa: E402
from raw_host import RawHost, body, raw_host  # noqa: E402

from sandboxrun.redis import embedded  # noqa: E402

SECONDS = 300
IMPORTED = ("httpx", "redis", "platformdirs", "packaging")  # which sandboxrun itself is installed with
TEN = ("requests", "PyYAML", "jinja2", "python-dateutil")  # ten wheels with what they need
WORKER = """\
{block}{imports}
from sandboxrun import worker
worker.handler(lambda request: {{"text": request.data["text"]}})
worker.run()
"""


class Bench:
    def __init__(self, url: str, folder: Path, host: RawHost) -> None:
        self.folder, self.host = folder, host
        self.r = redis.Redis.from_url(url, decode_responses=True, socket_timeout=SECONDS + 5)
        self.program = str(Path(sys.executable).with_name("sandboxrun"))
        self.env = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
        self.env |= {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "REDIS_URL": url, "LANG": "C.UTF-8"}
        (folder / "home").mkdir()

    def command(self, *words: str, **env: str) -> None:
        done = subprocess.run(words, env=self.env | env, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}: {done.stderr}")

    def serve(
        self, type_: str, imports: str, *, files: dict[str, str] | None = None, dependencies: tuple[str, ...] = ()
    ) -> None:
        """Publish a worker as v1.0.0 of its type, with its files and lock, and name it in its hash."""
        folder = self.folder / type_
        folder.mkdir()
        block = ""
        for path, text in (files or {}).items():
            (folder / path).write_text(text)
        if files or dependencies:
            listed = ", ".join(f'"{name}"' for name in dependencies)
            block = f"# /// script\n# dependencies = [{listed}]\n# ///\n"
        (folder / "worker.py").write_text(WORKER.format(block=block, imports=imports))
        if block:
            self.command(self.program, "lock", str(folder / "worker.py"), *(files or {}))
        for file in folder.iterdir():
            self.host.files[f"/{type_}/v1.0.0/{file.name}"] = body(file.read_bytes())
        self.r.hset(
            f"{type_}:1:h", mapping={"url": f"{self.host.url}/{type_}/{{version}}/worker.py", "version": "v1.0.0"}
        )
        self.r.hset(f"{type_}:1:h", "requestLimit", "1")

    def start(self, type_: str, **env: str) -> float:
        """Milliseconds to the first reply."""
        ref = os.urandom(8).hex()
        self.r.delete(f"{type_}:req:x", f"{type_}:res:x")
        self.r.xadd(f"{type_}:req:x", {"ref": ref, "type": type_, "data": '{"text": "hi"}'})
        with open(self.folder / "errors", "wb") as errors:
            begin = time.monotonic_ns()
            process = subprocess.Popen(
                [self.program, type_, "1"], env=self.env | env, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
            found = self.r.brpop([f"res:{ref}"], timeout=SECONDS)
            ended = time.monotonic_ns()
        if process.wait(SECONDS) != 0 or found is None or json.loads(found[1])["text"] != "hi":
            sys.exit(f"{type_}: {(self.folder / 'errors').read_text()}")
        return (ended - begin) / 1e6


def starts(bench: Bench, rounds: int) -> None:
    modules = {f"part{number}.py": f"NUMBER = {number}\n" + "def f():\n    return NUMBER\n" * 20 for number in range(9)}
    imports = f"import {', '.join(IMPORTED)}"
    bench.serve("one-file", "")
    bench.serve("ten-files", f"import {', '.join(name.removesuffix('.py') for name in modules)}", files=modules)
    bench.serve("site-packages", imports)
    bench.serve("environment", imports, dependencies=IMPORTED)
    types = ("one-file", "ten-files", "site-packages", "environment", "one-file-again")
    bench.serve("one-file-again", "")
    times: dict[str, list[float]] = {type_: [] for type_ in types}
    for type_ in types * 2:  # fetched, approved, compiled, installed
        bench.start(type_)
    for number in range(rounds):
        for type_ in random.Random(number).sample(types, len(types)):
            times[type_].append(bench.start(type_))
    print(f"start to the first reply, ms: medians of {rounds} rounds")
    for type_, partner in (
        ("one-file", None),
        ("one-file-again", "one-file"),
        ("ten-files", "one-file"),
        ("site-packages", None),
        ("environment", "site-packages"),
    ):
        line = f"{type_:16}{statistics.median(times[type_]):8.1f}"
        if partner is not None:
            pairs = list(zip(times[type_], times[partner], strict=True))
            line += f"   {statistics.median(mine - theirs for mine, theirs in pairs):+6.1f} ms"
            line += f"   x{statistics.median(mine / theirs for mine, theirs in pairs):.3f} of {partner}"
        print(line)


def installs(bench: Bench, rounds: int) -> None:
    wheels, requirements = bench.folder / "wheels", bench.folder / "requirements.txt"
    bench.serve("cold", "import requests, yaml, jinja2, dateutil", dependencies=TEN)
    lock = (bench.folder / "cold" / "requirements.lock").read_text()
    requirements.write_text(lock)
    bench.command(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--no-deps",
                  "--require-hashes", "--dest", str(wheels), "-r", str(requirements))  # fmt: skip
    local = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}

    def ours() -> float:
        for name in ("env", "wheels"):
            folder = bench.folder / "home/.cache/sandboxrun" / name
            subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(folder, ignore_errors=True)
        return bench.start("cold", **local) - bench.start("one-file")

    def into_new(*words: str) -> Callable[[], float]:
        def install() -> float:
            environment = bench.folder / "environment-of-peer"
            shutil.rmtree(environment, ignore_errors=True)
            bench.command(
                sys.executable, "-m", "venv", *(["--without-pip"] if words[0] == "uv" else []), str(environment)
            )
            cache = bench.folder / "cache-of-peer"
            shutil.rmtree(cache, ignore_errors=True)
            begin = time.monotonic_ns()
            if words[0] == "uv":
                import uv

                bench.command(uv.find_uv_bin(), "pip", "install", "--quiet", "--offline", "--no-index", "--find-links", str(wheels),
                              "--compile-bytecode", "--require-hashes", "--python", str(environment / "bin/python"),
                              "-r", str(requirements), UV_CACHE_DIR=str(cache))  # fmt: skip
            else:
                bench.command(str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--no-cache-dir",
                              "--require-hashes", "-r", str(requirements), **local)  # fmt: skip
            return (time.monotonic_ns() - begin) / 1e6

        return install

    contenders = {"sandboxrun": ours, "pip install": into_new("pip"), "uv pip install": into_new("uv")}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in random.Random(number).sample(list(contenders), len(contenders)):
            times[name].append(contenders[name]())
    count = len(list(wheels.glob("*.whl")))
    print(
        f"cold install of {count} wheels ({hashlib.sha256(lock.encode()).hexdigest()[:12]}), ms: medians of {rounds} rounds"
    )
    for name, found in times.items():
        ratio = statistics.median(mine / ours for mine, ours in zip(found, times["sandboxrun"], strict=True))
        print(f"{name:16}{statistics.median(found):8.0f}   x{ratio:.2f} of sandboxrun")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--installs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, embedded.server() as url, raw_host() as host:
        bench = Bench(url, Path(temporary), host)
        starts(bench, options.rounds)
        installs(bench, options.installs)


if __name__ == "__main__":
    main()
