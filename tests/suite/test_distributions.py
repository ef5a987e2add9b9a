"""Wheel and sdist: what is in them, and that pip, pipx and uv install them as they were built."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

import machine
import pytest
import redis
from hints import paste
from raw_host import body, raw_host
from runner import Runner

from sandboxrun import __version__, client
from sandboxrun.digests import hex_digest
from sandboxrun.redis import embedded

ROOT = Path(__file__).parents[2]
PLUGINS = f"sandboxrun-{__version__}.data/data/share/sandboxrun-plugins"
SCRIPTS = f"sandboxrun-{__version__}.data/scripts"
INFO = f"sandboxrun-{__version__}.dist-info"
IN_SDIST = {
    "sandboxrun", "bin", "plugins", "examples", "deploy", "demo", "docs", "tests", "bench", ".ci", "README.md", "SECURITY.md", "CONTRIBUTING.md",
    "CHANGELOG.md", "LICENSE", "pyproject.toml", ".gitignore", "PKG-INFO",
}  # fmt: skip
SECONDS = 200
pytestmark = pytest.mark.timeout(300)  # it downloads, and waits for another process of xdist that builds


class Built(NamedTuple):
    wheel: Path
    sdist: Path
    tools: Path  # the folder with build, uv and pipx
    env: dict[str, str]  # for them


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both, made once for all processes of xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributions"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "dist").exists():
            _build(folder)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return Built(wheel, sdist, folder / "tools/bin", _env(folder))


def _build(folder: Path) -> None:
    """The sdist from the tree, and the wheel from the sdist."""
    _venv(folder / "tools")
    done = _pip(folder / "tools", "build", "hatchling>=1.27", "uv", "pipx")
    if done.returncode != 0:
        missing = f"no package index is within reach: {done.stderr.strip().splitlines()[-1]}"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    command = [str(folder / "tools/bin/python"), "-m", "build", "--no-isolation", "--outdir", str(folder / "new")]
    _run([*command, str(ROOT)], machine.installing())
    (folder / "new").rename(folder / "dist")


def _venv(folder: Path) -> Path:
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], machine.installing())
    return folder


def _pip(venv: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", *packages]
    return subprocess.run(command, env=machine.installing(), capture_output=True, text=True, timeout=SECONDS)


def _env(folder: Path) -> dict[str, str]:
    """uv reads no pip.conf: it is told what that says of the index."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    said = dict(line.partition("=")[::2] for line in _run(pip, machine.installing()).splitlines() if "=" in line)
    found = {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, value in said.items()}
    names = {"index-url": "UV_DEFAULT_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}
    env = {names[name]: value for name, value in found.items() if name in names}
    return {**env, "UV_CACHE_DIR": str(folder / "uv-cache"), "UV_PYTHON_DOWNLOADS": "never", **machine.installing()}


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- what is in them


def _files(folder: str) -> set[str]:
    """Of the tree, without what Python and tools leave behind."""
    paths = (ROOT / folder).rglob("*")
    return {
        str(path.relative_to(ROOT))
        for path in paths
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts and ".state" not in path.parts
    }


def test_the_wheel_has_the_package_and_the_plugins_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
        metadata = HeaderParser().parsestr(wheel.read(f"{INFO}/METADATA").decode())
    package, plugins = _files("sandboxrun"), _files("plugins")
    info = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "licenses/LICENSE", "RECORD")}
    assert names == package | info | {f"{SCRIPTS}/{name.removeprefix('bin/')}" for name in _files("bin")} | {
        PLUGINS + name.removeprefix("plugins") for name in plugins
    }
    assert "sandboxrun/py.typed" in names
    assert {Path(name).suffix for name in package} == {".py", ".typed", ".json"}  # seccomp.json
    assert {Path(name).suffix for name in plugins} == {".py", ".md", ".json", ".lock"}
    assert (metadata["Name"], metadata["License-Expression"]) == ("sandboxrun", "MIT")
    assert metadata.get_all("Project-URL") is None  # none that leads nowhere
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_sdist_has_what_the_wheel_and_the_tests_are_made_from(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        members = sdist.getmembers()
    names = {member.name.removeprefix(f"sandboxrun-{__version__}/") for member in members if member.isfile()}
    assert {name.partition("/")[0] for name in names} <= IN_SDIST
    for folder in sorted(name for name in IN_SDIST if (ROOT / name).is_dir()):
        assert {name for name in names if name.startswith(f"{folder}/")} == _files(folder), folder
    assert all(member.isfile() for member in members)  # no link, no device


# --- installed


def _by_pip(built: Built, folder: Path) -> Path:
    done = _pip(_venv(folder / "venv"), str(built.wheel))
    assert done.returncode == 0, done.stderr
    return folder / "venv"


def _by_pipx(built: Built, folder: Path) -> Path:
    env = {**built.env, "PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin")}
    _run([str(built.tools / "pipx"), "install", "--python", sys.executable, str(built.wheel)], env)
    return folder / "pipx/venvs/sandboxrun"


def _by_uv(built: Built, folder: Path) -> Path:
    env = {**built.env, "UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    _run([str(built.tools / "uv"), "tool", "install", "--python", sys.executable, str(built.wheel)], env)
    return folder / "tools/sandboxrun"


def _from_the_sdist(built: Built, folder: Path) -> Path:
    venv = _venv(folder / "venv")
    _run([str(built.tools / "uv"), "pip", "install", "--python", str(venv / "bin/python"), str(built.sdist)], built.env)
    return venv


WAYS = {"pip": _by_pip, "pipx": _by_pipx, "uv tool": _by_uv, "sdist": _from_the_sdist}


class Installed(Runner):
    """The command of an installation, with an empty home and so the default policy."""

    def __init__(self, redis_url: str, home: Path, program: Path) -> None:
        home.mkdir()
        super().__init__(redis_url, home, policy=None)
        self.program = program
        self.env["PATH"] = f"{program.parent}:{self.env['PATH']}"

    def command(self, *args: str) -> list[str]:
        return [str(self.program), *args]


@pytest.fixture
def redis_url() -> Iterator[str]:
    with embedded.server() as url:
        yield url


@pytest.mark.parametrize("way", WAYS)
def test_what_is_installed_checks_the_sandbox_and_runs_its_plugins(
    built: Built, redis_url: str, tmp_path: Path, way: str
) -> None:
    venv = WAYS[way](built, tmp_path)
    exposed = tmp_path / "bin/sandboxrun"  # by pipx and uv, outside of the environment
    run = Installed(redis_url, tmp_path / "home", exposed if exposed.exists() else venv / "bin/sandboxrun")
    assert run("--version").out == f"sandboxrun {__version__}\n"
    assert run("check").code == 0

    listed = json.loads(run("plugins", "--json").out)
    assert [plugin["name"] for plugin in listed] == sorted(path.name for path in (ROOT / "plugins").iterdir())
    for plugin in listed:
        folder = Path(plugin["fields"]["url"])
        assert folder.is_relative_to(venv.resolve() / "share/sandboxrun-plugins")
        assert plugin["sha256"] == hex_digest((ROOT / "plugins" / plugin["name"] / "worker.py").read_bytes())
        assert plugin["sha256"] == hex_digest((folder / "worker.py").read_bytes())
    _no_plugin_is_a_module(venv)
    shown = run("plugins", "http-get").out
    _http_get_answers(run, [line.strip() for line in shown.splitlines() if line.startswith("  sandboxrun ")])
    if way == "uv tool":
        _a_package_is_installed_once_pip_is_there(built, run, tmp_path)
    if way == "pip":
        _another_worker_in_its_place_is_refused(run, folder.parent / "http-get/worker.py")
    shutil.rmtree(venv)


def _a_package_is_installed_once_pip_is_there(built: Built, run: Installed, folder: Path) -> None:
    """An environment of `uv tool` has no pip; uv is found on PATH."""
    run.env |= built.env | {"HOME": str(run.home), "PATH": f"{built.tools}:{run.env['PATH']}"}
    assert run("init", "--package", "sizes").code == 0
    with redis.Redis.from_url(run.env["REDIS_URL"]) as r:
        r.hset("sizes:1:h", mapping={"url": str(run.home / "sizes"), "version": "local", "requestLimit": "1"})
        done = run("sizes", "1")
        assert done.code == 64
        assert done.err.endswith("hint: uv tool install sandboxrun --with pip\n"), done.err
        where = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
        command = ["tool", "install", "--force", "--python", sys.executable, str(built.wheel), "--with", "pip"]
        _run([str(built.tools / "uv"), *command], built.env | where)
        ref = client.send(r, "sizes", {"bytes": 2048}, now="x")
        done = run("sizes", "1")
        assert done.code == 0, done.err
        reply = client.wait(r, ref, timeout_seconds=1)
        assert reply is not None
        assert reply["text"] == "2.0 KiB"


def _no_plugin_is_a_module(venv: Path) -> None:
    names = ("plugins", "share", "sandboxrun.plugins", "sandboxrun.share")
    program = f"from importlib.util import find_spec; print([find_spec(name) for name in {names}])"
    assert _run([str(venv / "bin/python"), "-I", "-c", program], {}) == "[None, None, None, None]\n"


def _http_get_answers(run: Installed, commands: list[str]) -> None:
    """By the commands that were shown, and then with a page that is here."""
    write, start, ask = commands
    done = paste(write, run.env, run.home)
    assert done.returncode == 0, done.stderr
    assert start == "sandboxrun http-get 1" and ask.startswith("sandboxrun call http-get ")
    with raw_host() as host:
        host.files["/"] = body(b"a page")
        changed = run("set", "http-get", "1", f"allowNet=127.0.0.1:{host.port}")
        assert changed.code == 0, changed.err
        with run.start("http-get", "1"), client.Client(run.env["REDIS_URL"]) as c:
            assert c.call("http-get", {"url": f"{host.url}/"}, timeout=30)["body"] == "a page"
            with pytest.raises(client.RemoteError):
                c.call("http-get", {"url": f"http://127.0.0.2:{host.port}/"}, timeout=30)
        assert len(host.requests) == 1


def _another_worker_in_its_place_is_refused(run: Installed, worker: Path) -> None:
    worker.write_text(worker.read_text() + "\n# changed\n")
    done = run("http-get", "1")
    assert done.code == 65, done
    assert "field sha256 pins" in done.err
