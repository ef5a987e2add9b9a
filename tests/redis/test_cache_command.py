"""`sandboxrun cache`: what lies there and who uses it, its removal, and its verification. Symlinks are never followed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from hints import hint_of, paste
from raw_host import RawHost
from runner import Runner

FILES = {"helpers.py": "NAME = 'helpers'\n", "pkg/part.py": "VALUE = 7\n"}
ENV, WHEEL = "e" * 64, "d" * 64


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def cache(run: Runner) -> Path:
    return run.home / ".cache/sandboxrun"


Serve = Callable[..., None]


@pytest.fixture
def serve(r: redis.Redis, host: RawHost) -> Serve:
    """Serve a script with its files, and name it in the hash of the worker t 1."""

    def put(code: str = "import helpers\nprint('ran')\n") -> None:
        table = ", ".join(f'"{path}" = "sha256:{digest(text)}"' for path, text in FILES.items())
        host.files["/v1.0.0/w.py"] = f"# /// script\n# [tool.sandboxrun]\n# files = {{ {table} }}\n# ///\n{code}"
        host.files.update({f"/v1.0.0/{path}": text for path, text in FILES.items()})
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1.0.0"})

    return put


def plant(cache: Path, name: str = ENV) -> Path:
    """An environment and a wheel, as far as `cache` looks at them."""
    folder = cache / "env" / name
    (folder / "requests").mkdir(parents=True)
    (folder / "requests/__init__.py").write_text("VERSION = 1\n")
    for suffix in (".seal", ".files", ".lock"):
        (cache / "env" / (name + suffix)).write_text("")
    for path in (folder / "requests", folder):
        path.chmod(0o555)
    (cache / "wheels").mkdir(exist_ok=True)
    (cache / "wheels" / f"{WHEEL}.whl").write_bytes(b"x" * 2048)
    return folder


def used_by(run: Runner, worker: str, *paths: str, **changes: Any) -> None:
    """Make it the record of a worker's last run, under a supervisor that is this process."""
    with open("/proc/self/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19])
    host = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    record = {
        "uses": list(paths),
        "packages": ["idna 3.7", "requests 2.32.3"],
        "supervisor": {"pid": os.getpid(), "started": started, "host": host, **changes},
    }
    folder = run.home / ".local/state/sandboxrun/runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{worker}.json").write_text(json.dumps(record))


def listed(run: Runner) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads(run("cache", "--json").out)
    return found


@contextlib.contextmanager
def kept_open(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_scripts_files_and_environments_are_listed_with_their_users(run: Runner, serve: Serve, cache: Path) -> None:
    serve()
    assert run("t", "1").out == "ran\n"
    plant(cache)
    used_by(run, "u:1", f"env/{ENV}")
    used_by(run, "u:2", f"env/{ENV}", started=1)
    [tree] = (path for path in (cache / "trees").iterdir() if path.is_dir())
    shown = run("cache").out.splitlines()
    assert shown[0].endswith("/v1.0.0/w.py") and "  v1.0.0  " in shown[0]
    assert shown[1].startswith(f"{tree.name[:12]}  ") and shown[1].endswith("files, used by t 1")
    assert shown[2].startswith(f"{ENV[:12]}  ")
    assert shown[2].endswith("packages idna 3.7 + requests 2.32.3, environment of 1 file, used by u 1 (runs) and u 2")
    assert shown[3:] == ["2 files without a pin, 27 B", "1 wheel, 2.0 KiB"]
    found = listed(run)
    assert list(found) == ["scripts", "files", "trees", "environments", "wheels"]
    assert {entry["digest"] for entry in found["files"]} == {digest(text) for text in FILES.values()}
    [script], [files], [environment], [wheel] = (found[key] for key in ("scripts", "trees", "environments", "wheels"))
    assert (script["version"], len(script["sha256"])) == ("v1.0.0", 64)
    assert (files["digest"], files["workers"]) == (tree.name, [{"worker": "t:1", "runs": False}])
    assert (environment["files"], environment["packages"]) == (1, ["idna 3.7", "requests 2.32.3"])
    assert environment["workers"] == [{"worker": "u:1", "runs": True}, {"worker": "u:2", "runs": False}]
    assert (wheel["digest"], wheel["bytes"]) == (WHEEL, 2048)


def test_clean_removes_all_of_it_and_the_next_start_fetches_it_again(
    run: Runner, serve: Serve, cache: Path, host: RawHost
) -> None:
    serve()
    assert run("t", "1").out == "ran\n"
    plant(cache)
    (cache / "trees/.staging-0123").mkdir()
    done = run("cache", "--clean")
    assert done.out.startswith("removed 3 scripts, 1 folder of files, 1 environment, 1 wheel, "), done
    assert done.err == ""
    left = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
    kept = {path for path in left if not path.startswith(("filters", "scratch", "trees"))}
    assert kept == {f"env/{ENV}.lock"}
    assert all(path.endswith(".lock") for path in left if path.startswith("trees"))
    assert not [path for path in (*cache.glob("trees/*"), *cache.glob("env/*")) if path.is_dir()]
    assert "cleaned" in run("cache").out
    before = len(host.requests)
    assert run("t", "1").out == "ran\n"
    assert len(host.requests) == before + 3


def test_what_a_running_worker_uses_is_kept_and_said(r: redis.Redis, run: Runner, serve: Serve, cache: Path) -> None:
    serve("import time\nprint('ran', flush=True)\ntime.sleep(600)\n")
    with run.start("t", "1"):
        wait_for(lambda: r.hexists("t:1:h", "pid"))
        [tree] = (path for path in (cache / "trees").iterdir() if path.is_dir())
        done = run("cache", "--clean")
        assert (done.code, done.err) == (0, f"warning: {tree} was kept: t 1 uses it\n")
        assert (tree / "helpers.py").exists() and (cache / "tree-records" / tree.name).exists()
        kept = json.loads(run("cache", "--clean", "--json").out)["kept"]
        assert kept == [{"path": str(tree), "reason": "t 1 uses it"}]
        done = run("cache", "--remove", tree.name[:16])
        assert done.code == 73
        assert f"the folder of files {tree} is used by t 1, which runs" in done.err
        assert hint_of(done.err) == "sandboxrun stop t 1"
        assert paste(hint_of(done.err), run.env, run.home).returncode == 0
    wait_for(lambda: run("cache", "--remove", tree.name[:16]).code == 0)
    assert not tree.exists()


def test_one_is_removed_by_its_digest(run: Runner, serve: Serve, cache: Path) -> None:
    serve()
    assert run("t", "1").out == "ran\n"
    plant(cache)
    plant_other = plant(cache / "x", "e" * 8 + "0" * 56)
    plant_other.chmod(0o755)
    plant_other.rename(cache / "env" / plant_other.name)
    assert run("cache", "--remove", "sha256:" + WHEEL).out == f"removed 0 scripts, 1 wheel, 2048 bytes, from {cache}\n"
    for text, error in [
        ("e" * 8, "2 entries of .* have a digest that begins with eeeeeeee: expected more of it"),
        ("f" * 12, "nothing in .* has the digest ffffffffffff"),
        ("e" * 7, "--remove is 'eeeeeee': expected 8 to 64 hexadecimal digits"),
        ("../../x", "--remove is '../../x': expected 8 to 64 hexadecimal digits"),
        (f"{ENV}/..", "expected 8 to 64 hexadecimal digits"),
        ("", "--remove is '': expected 8 to 64 hexadecimal digits"),
    ]:
        done = run("cache", "--remove", text)
        assert done.code == 64
        assert re.search(error, done.err), done.err
    script = listed(run)["scripts"][0]["sha256"]
    done = run("cache", "--remove", ENV[:12], "--remove", script, "--json")
    assert json.loads(done.out)["removed"] == {"script": 1, "folder of files": 0, "environment": 1, "wheel": 0}
    assert not (cache / f"env/{ENV}.seal").exists()
    assert (cache / "env" / plant_other.name).exists()


def test_symlinks_in_the_cache_are_removed_and_never_followed(run: Runner, cache: Path, tmp_path: Path) -> None:
    run("cache")
    data = run.home / ".local/share/sandboxrun/t/1"
    outside = tmp_path / "outside"
    for folder in (data, outside / "pkg"):
        folder.mkdir(parents=True)
        (folder / "precious").write_text("kept")
    outside.chmod(0o555)
    folder = plant(cache)
    folder.chmod(0o755)
    (folder / "in").symlink_to(outside)
    (folder / "up").symlink_to("../../../..")
    (folder / "file").symlink_to(data / "precious")
    for place, name in [("env", "a" * 64), ("trees", "a" * 64), ("blobs", "a" * 64), ("wheels", "a" * 64 + ".whl")]:
        (cache / place).mkdir(exist_ok=True)
        (cache / place / name).symlink_to(data)
    (cache / "trees/.staging-1").symlink_to(outside)
    (cache / "code").symlink_to(data)
    assert [sorted(entry["files"] for entry in listed(run)[key]) for key in ("trees", "environments")] == [[1], [1, 2]]
    done = run("cache", "--clean")
    assert (done.code, done.err) == (0, f"warning: {cache}/code was kept: it is not a folder of this user\n")
    assert [(path / "precious").read_text() for path in (data, outside / "pkg")] == ["kept", "kept"]
    assert outside.stat().st_mode & 0o777 == 0o555
    assert list((cache / "env").glob("[ae]" * 64)) == list((cache / "trees").glob("*")) == []
    assert list((cache / "blobs").iterdir()) == list((cache / "wheels").iterdir()) == []


@pytest.mark.parametrize("place", ["env", "trees", "blobs", "wheels"])
def test_a_folder_of_the_cache_that_is_a_symlink_is_left_alone(
    run: Runner, cache: Path, tmp_path: Path, place: str
) -> None:
    run("cache")
    outside = tmp_path / "outside"
    (outside / ENV).mkdir(parents=True)
    (outside / ENV / "precious").write_text("kept")
    (outside / f"{ENV}.whl").write_text("kept")
    if (cache / place).exists():
        (cache / place).rmdir()
    (cache / place).symlink_to(outside)
    for args in (["--clean"], ["--remove", ENV]):
        done = run("cache", *args)
        assert f"warning: {cache}/{place} was kept: it is not a folder of this user\n" in done.err
    assert (outside / ENV / "precious").read_text() == (outside / f"{ENV}.whl").read_text() == "kept"


def test_the_data_of_workers_is_never_in_reach(run: Runner) -> None:
    """A worker of the type env has its data in DATA/env/ID: with one folder for both, that is where environments lie."""
    run.env |= {"XDG_CACHE_HOME": str(run.home / "one"), "XDG_DATA_HOME": str(run.home / "one")}
    data = run.home / "one/sandboxrun/env" / ENV
    data.mkdir(parents=True)
    (data / "precious").write_text("kept")
    for folder in (run.home / "one", run.home / "one/sandboxrun"):
        folder.chmod(0o700)
    for args in (["--clean"], ["--remove", ENV]):
        done = run("cache", *args)
        assert done.code == 78
        assert "are not apart, so nothing is removed" in done.err
    assert (data / "precious").read_text() == "kept"
    run.env["XDG_DATA_HOME"] = str(run.home / "one/sandboxrun/env" / ENV)
    assert run("cache", "--clean").code == 78


def test_what_is_being_made_is_kept(run: Runner, cache: Path) -> None:
    run("cache")
    folder = plant(cache)
    (cache / "env/staging").mkdir()
    with kept_open(cache / f"env/{ENV}.lock"):
        done = run("cache", "--clean")
        assert f"warning: {folder} was kept: something is being made there\n" in done.err
        assert folder.exists() and (cache / f"env/{ENV}.seal").exists() and (cache / "env/staging").exists()
        assert not (cache / f"wheels/{WHEEL}.whl").exists()
    assert run("cache", "--clean").err == ""
    assert not folder.exists() and not (cache / "env/staging").exists()


def test_what_is_none_of_ours_is_kept(run: Runner, cache: Path) -> None:
    run("cache")
    plant(cache)
    (cache / "env/notes").mkdir()
    (cache / "trees").mkdir(exist_ok=True)
    (cache / "trees/notes.txt").write_text("mine")
    done = run("cache", "--clean")
    assert done.err == "".join(
        f"warning: {cache}/{name} was kept: sandboxrun did not make it\n" for name in ("trees/notes.txt", "env/notes")
    )
    assert (cache / "trees/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"uses": 1}', '{"uses": ["env/x"], "supervisor": {"pid": "x"}}', "[" * 100_000, "null"]
)
def test_a_damaged_record_of_a_run_counts_for_nothing(run: Runner, cache: Path, record: str) -> None:
    run("cache")
    plant(cache)
    used_by(run, "t:1", f"env/{ENV}")
    (run.home / ".local/state/sandboxrun/runs/t:2.json").write_text(record)
    (run.home / ".local/state/sandboxrun/runs/odd").write_text(record)
    assert [entry["workers"] for entry in listed(run)["environments"]] == [[{"worker": "t:1", "runs": True}]]
    assert f"{cache}/env/{ENV} was kept: t 1 uses it" in run("cache", "--clean").err


def test_verify_names_what_is_damaged_and_its_hint_removes_it(run: Runner, serve: Serve, cache: Path) -> None:
    serve()
    assert run("t", "1").out == "ran\n"
    done = run("cache", "--verify")
    assert (done.code, done.out) == (0, f"4 entries in {cache}: all as they were made\n"), done
    [tree] = (path for path in (cache / "trees").iterdir() if path.is_dir())
    blob = cache / "blobs" / digest(FILES["helpers.py"])
    for path in (tree / "helpers.py", blob):
        path.chmod(0o600)
        path.write_text("NAME = 'other'\n")
        path.chmod(0o400)
    done = run("cache", "--verify")
    assert done.code == 65
    assert done.out == (
        f"script {blob} has sha256 {digest(chr(78) + 'AME = ' + repr('other') + chr(10))}\n"
        f"folder of files {tree} is not as it was made\n"
    )
    assert f"2 of 4 entries in {cache} are damaged, and are never run\n" in done.err
    found = json.loads(run("cache", "--verify", "--json").out)
    assert [entry["digest"] for entry in found["damaged"]] == [blob.name, tree.name]
    assert paste(hint_of(done.err), run.env, run.home).returncode == 0
    assert run("cache", "--verify").out == f"2 entries in {cache}: all as they were made\n"
    assert run("t", "1").out == "ran\n"


def test_another_file_system_in_the_cache_is_not_emptied(run: Runner, cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    run("cache")
    folder = plant(cache)
    folder.chmod(0o755)
    (folder / "mnt").mkdir()
    script = 'mount -t tmpfs none "$1" && echo kept >"$1/precious" && shift && "$@"; cat "$0/precious"'
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        str(folder / "mnt"),
        str(folder / "mnt"),
        *run.command("cache", "--clean"),
    ]
    done = subprocess.run(command, env=run.env, capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("this machine lets nobody mount")
    assert f"{folder} was kept: another file system is mounted there" in done.stderr
    assert done.stdout.endswith("kept\n")
