"""Grants by which a worker would outlast its run: code that it leaves where it is run later, names that it has turned."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from runner import Done, Runner

import sandboxrun
from sandboxrun.redis import embedded

Local = Callable[..., Path]


class Permissive(Runner):
    """Where the operator allows and agrees to everything, wherever XDG_CONFIG_HOME is."""

    def command(self, *args: str) -> list[str]:
        agreed = [] if args[0] == "cache" else ["--yes", "--policy", str(self.policy)]
        return super().command(*args, *agreed)


@pytest.fixture
def run(run: Runner) -> Permissive:
    return Permissive(run.env["REDIS_URL"], run.home)


def _refused(done: Done, path: object) -> None:
    assert (done.code, done.out) == (78, ""), (path, done)
    assert "field allowWrite of t:1:h" in done.err, path


def test_what_is_code_cannot_be_granted_for_writing(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local("print('ran')")
    for path in (os.path.dirname(sys.executable), sys.prefix, "/usr/bin", "/etc", "/", str(folder), str(run.home)):
        r.hset("t:1:h", "allowWrite", path)
        run("cache")  # makes the folders that the home is protected for
        done = run("t", "1")
        assert (done.code, done.out) == (78, ""), path
        assert "field allowWrite of t:1:h" in done.err


def test_a_symlink_planted_in_a_writable_folder_grants_nothing(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    data, private = tmp_path / "data", tmp_path / "private"
    (data / "in").mkdir(parents=True)
    private.mkdir()
    (private / "secret").write_text("private")
    code = f"import os\nos.rename('{data}/in', '{data}/old')\nos.symlink('{private}', '{data}/in')\n"
    local(code, allowWrite=str(data), allowRead=f"{data}/in")
    assert run("t", "1").code == 0
    assert (data / "in" / "secret").read_text() == "private"
    local(f"print(open('{data}/in/secret').read())")
    done = run("t", "1")
    assert (done.code, done.out) == (78, "")
    assert f"{data}/in is a symlink in a folder that workers may be given for writing" in done.err


@pytest.mark.parametrize("variable", ["PATH", "PYTHONPATH"])
def test_a_folder_that_is_searched_for_code_cannot_be_granted_for_writing(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path, variable: str
) -> None:
    local("print('ran')")
    data = tmp_path / "data"
    for name in ("code/sub", "code/json", "code/own", "later", "free"):
        (data / name).mkdir(parents=True)
    (data / "code/own/__init__.py").touch()
    (data / "link").symlink_to(data / "free")
    searched = f"{data}/code:{data}/later/not-there-yet:{data}/link/not-there-yet"
    run.env[variable] = searched + ":" + run.env.get(variable, "")
    for name in ("code", "code/sub" if variable == "PATH" else "code/json", "code/own", "later", "free", "."):
        r.hset("t:1:h", "allowWrite", str(data / name))
        _refused(run("t", "1"), name)
    run.env[variable] = f"{data}/code"
    for name in ("later", "free", *(["code/sub"] if variable == "PYTHONPATH" else [])):
        r.hset("t:1:h", "allowWrite", str(data / name))
        assert run("t", "1").out == "ran\n"


def test_compiled_code_cannot_be_granted_for_writing(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    """Neither where Python keeps it, nor the file of all modules, which lies beside."""
    local("print('ran')")
    prefix = tmp_path / "prefix"
    (prefix / "deep").mkdir(parents=True)
    package = Path(sandboxrun.__file__).parent
    kept = [package / "__pycache__", package / "worker/__pycache__", *package.glob("__pycache__/all-modules.*")]
    for path in (*kept, prefix, prefix / "deep"):
        path.mkdir(exist_ok=True) if not path.exists() else None
        r.hset("t:1:h", "allowWrite", str(path))
        run.env["PYTHONPYCACHEPREFIX"] = str(prefix)
        done = run("t", "1")
        _refused(done, path)
        assert "would let the worker change code that is run later" in done.err
    del run.env["PYTHONPYCACHEPREFIX"]
    assert run("t", "1").out == "ran\n"


def test_the_current_folder_cannot_be_granted_where_python_takes_modules_from_it(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    local("print('ran')")
    here = tmp_path / "here"
    for name in ("data", "ipaddress", "redis", "sandboxrun", "own", "__pycache__"):
        (here / name).mkdir(parents=True)
    (here / "own" / "__init__.py").touch()
    (here / "notes.py").touch()
    (here / "notes.txt").touch()

    def start(allow: Path, *, module: bool = True, **env: str) -> Done:
        r.hset("t:1:h", "allowWrite", str(allow))
        command = [sys.executable, "-m", "sandboxrun", *run.command("t", "1")[1:]] if module else run.command("t", "1")
        done = subprocess.run(command, env={**run.env, **env}, cwd=here, capture_output=True, text=True, timeout=60)
        return Done(done.returncode, done.stdout, done.stderr)

    for name in (".", "..", "ipaddress", "redis", "sandboxrun", "own", "__pycache__", "notes.py"):
        _refused(start(here / name), name)
    for name in ("data", "notes.txt"):
        done = start(here / name)
        assert (done.code, done.out) == (0, "ran\n"), done
    assert start(here / "ipaddress", module=False).out == start(here, module=False).out == "ran\n"
    assert start(here, PYTHONSAFEPATH="1").out == "ran\n"
    _refused(start(here, module=False, PATH=":/usr/bin:/bin"), "an empty entry of PATH")
    # This is what it would have run.
    (here / "ipaddress" / "__init__.py").write_text("raise SystemExit('planted')")
    assert start(here / "data").err == "planted\n"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (".", "."),
        ("..", "."),
        (".ssh", ".ssh"),
        (".ssh/deep", ".ssh/deep"),
        (".bashrc", ".bashrc"),
        (".profile", ".profile"),
        (".config", ".config"),
        (".config/systemd/user", ".config/systemd"),
        (".config/autostart", ".config/autostart"),
        (".config/sandboxrun", ".config/sandboxrun"),
        (".local", ".local"),
        (".local/lib", ".local"),
        (".local/bin", ".local/bin"),
        (".local/state", ".local/state"),
        (".cache", ".cache"),
        ("elsewhere/autostart", "elsewhere"),
    ],
)
def test_what_runs_for_the_operator_cannot_be_granted_for_writing(
    r: redis.Redis, run: Runner, local: Local, path: str, asked: str
) -> None:
    local("print('ran')", allowWrite=str(run.home / asked))
    run.env["XDG_CONFIG_HOME"] = str(run.home / "elsewhere")
    (run.home / path).mkdir(parents=True, exist_ok=True)
    _refused(run("t", "1"), path)


def test_the_rest_of_the_home_can_be_granted(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    for name in ("data", ".config/bot", ".local/share/bot", ".cache/bot"):
        (run.home / name).mkdir(parents=True)
        path = str(run.home / name)
        local(f"open('{path}/file', 'w').close()\nprint('written')", allowWrite=path)
        assert run("t", "1").out == "written\n", name
    (tmp_path / "disk").mkdir()
    (run.home / "link").symlink_to(tmp_path / "disk")  # where no worker can have put it
    local(f"open('{tmp_path}/disk/file', 'w').close()\nprint('written')", allowWrite=str(run.home / "link"))
    assert run("t", "1").out == "written\n"


def test_places_are_protected_that_are_found_through_a_symlink_in_a_writable_folder(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    state.mkdir()
    (data / "link").symlink_to(state)
    (tmp_path / "way").symlink_to(data / "link")
    local("print('ran')", allowWrite=str(data))
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PATH", "PYTHONPATH"):
        for way in (data / "link", tmp_path / "way"):
            usual = run.env.get(name)
            run.env[name] = str(way)
            done = run("t", "1")
            _refused(done, name)
            assert f"through the symlink {data}/link" in done.err
            run.env.pop(name)
            if usual is not None:
                run.env[name] = usual
    assert run("t", "1").out == "ran\n"


def test_a_local_worker_is_not_found_through_a_symlink_that_a_worker_can_have_planted(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    folder = local("print(open('secret').read())")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "link").symlink_to(folder)
    r.hset("t:1:h", "url", str(tmp_path / "shared" / "link"))
    done = run("t", "1")
    assert (done.code, done.out) == (78, "")
    assert "field url of t:1:h" in done.err
    assert f"{tmp_path}/shared/link is a symlink in a folder that workers may be given for writing" in done.err


def test_a_script_is_code_where_it_really_lies(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    folder = local("", allowWrite=str(data))
    (data / "script.py").write_text("print('ran')")
    (folder / "worker.py").unlink()
    (folder / "worker.py").symlink_to(data / "script.py")
    _refused(run("t", "1"), data)
    r.hdel("t:1:h", "allowWrite")
    assert run("t", "1").out == "ran\n"


def test_the_folder_of_redis_socket_is_no_workers_to_change(run: Runner) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as short,  # an address has room for 107 characters (unix(7))
        embedded.server(unix_socket=True) as url,
        redis.Redis.from_url(url, decode_responses=True, socket_timeout=30) as r,
    ):
        worker, data = Path(short) / "worker", Path(short) / "data"
        worker.mkdir()
        data.mkdir()
        (worker / "worker.py").write_text("print('ran')")
        fields = {"url": str(worker), "version": "local", "allowWrite": str(data)}
        r.hset("t:1:h", mapping=fields)
        login, path = url.split("@")
        (data / "link").symlink_to(os.path.dirname(path))
        for folder in (str(data / "link"), os.path.dirname(path)):
            run.env["REDIS_URL"] = f"{login}@{folder}/{os.path.basename(path)}"
            done = run("t", "1")
            if folder == str(data / "link"):
                _refused(done, folder)
                assert f"through the symlink {data}/link" in done.err
            else:
                assert done.out == "ran\n"


def test_no_program_is_run_to_remove_a_scratch_folder(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    """By its name it would be the one that stands first on PATH, or lies in the current folder."""
    folder, canary = tmp_path / "bin", tmp_path / "canary"
    folder.mkdir()
    for name in ("rm", "chmod"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (folder / name).chmod(0o755)
    run.env["PATH"] = f"{folder}:{run.env['PATH']}"
    subprocess.run(["rm", "nothing"], env=run.env, check=True)
    assert canary.exists()
    canary.unlink()
    local("import os\nfor n in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\nos.mkdir('x', 0)\nprint('made')\n")
    assert run("t", "1").out == "made\n"
    assert not canary.exists()
    assert list((run.home / ".cache/sandboxrun/scratch").iterdir()) == []
