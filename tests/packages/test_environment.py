"""An environment: installed once from a lock, used without a network, the same everywhere, and verified."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from index import Index, serving
from installer import Machine, lock_of, published
from wheels import lock_text, wheel

from sandboxrun.errors import FetchError, IntegrityError, SandboxrunError, ScriptError, UsageError
from sandboxrun.installation import install_hint
from sandboxrun.packages import verify
from sandboxrun.packages.verify import fault

TWO = (
    wheel("first", files={"first/__init__.py": "import second\nVALUE = second.VALUE\n", "first/data.txt": "text"}),
    wheel("second", files={"second.py": "VALUE = 42\n", "bad.py": "print 'Python 2'\n"}),
)
PROGRAM = "import sys; sys.path.append(sys.argv[1]); import first; print(first.VALUE, first.__file__, first.__cached__)"


def run(path: Path) -> list[str]:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_packages_are_installed_read_only_and_compiled(machine: Machine, index: Index) -> None:
    path = machine.install(published(index, *TWO))
    assert run(path) == [
        "42",
        f"{path}/first/__init__.py",
        f"{path}/first/__pycache__/__init__.{sys.implementation.cache_tag}.pyc",
    ]
    assert (path / "first/data.txt").read_text() == "text"
    assert (path / "first-1.0.dist-info/METADATA").is_file()  # for importlib.metadata
    modes = {oct(file.lstat().st_mode & 0o7777) for file in path.rglob("*") if file.is_file()}
    assert modes == {"0o444"}
    folders = [path, *(folder for folder in path.rglob("*") if folder.is_dir())]
    assert {oct(folder.lstat().st_mode & 0o7777) for folder in folders} == {"0o555"}
    assert machine.said == ["fetching first 1.0, second 1.0", "installing 2 packages of requirements.lock"]
    assert machine.staging() == []


def test_compiled_modules_are_not_checked_and_name_the_final_path(machine: Machine, index: Index) -> None:
    path = machine.install(published(index, *TWO))
    compiled = path / f"__pycache__/second.{sys.implementation.cache_tag}.pyc"
    data = compiled.read_bytes()
    assert data[4:8] == b"\x01\0\0\0"  # PEP 552: by hash, unchecked
    assert str(path / "second.py").encode() in data
    assert not (path / f"__pycache__/bad.{sys.implementation.cache_tag}.pyc").exists()


def test_the_second_start_asks_nobody(machine: Machine, index: Index) -> None:
    lock = published(index, *TWO)
    path = machine.install(lock)
    asked = len(index.requests)
    index.close()
    assert machine.installed(lock) == str(path)
    assert machine.install(lock) == path
    assert machine.install(lock, cached_only=True) == path
    assert len(index.requests) == asked


@pytest.mark.parametrize("boot", ["", "another"])
@pytest.mark.parametrize(
    ("limits", "kind", "cause"),
    [
        ({"packed_max": 100}, FetchError, "bytes: the limit is 100"),
        ({"unpacked_max": 50}, ScriptError, "are not installed: unpacked they have more than 50 bytes or 20000 files"),
        ({"files_max": 3}, ScriptError, "are not installed: unpacked they have more than 536870912 bytes or 3 files"),
    ],
)
def test_limits_hold_for_what_is_installed_already(
    machine: Machine,
    index: Index,
    limits: dict[str, int],
    kind: type[SandboxrunError],
    cause: str,
    boot: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = published(index, *TWO)
    path = machine.install(lock)
    (found,) = verify.environments(str(machine.cache), machine.key)
    assert found.seal is not None
    exact = {
        "packed_max": found.seal.packed_bytes,
        "unpacked_max": found.seal.source_bytes,
        "files_max": found.seal.source_files,
    }
    assert machine.install(lock, **exact) == path
    if boot:
        monkeypatch.setattr("sandboxrun.packages.seal.boot_id", lambda: boot)
    with pytest.raises(kind, match=cause):
        machine.install(lock, **limits)


def test_offline_the_cached_wheels_are_enough_and_no_socket_is_opened(machine: Machine, index: Index) -> None:
    path = machine.install(published(index, *TWO))
    # Another lock of the same wheels has another environment.
    lock = b"# another lock\n" + lock_text(*TWO)
    program = f"""
import sys
def hook(event, args):
    if event.startswith(("socket.", "subprocess.")):
        print(event, args)
sys.addaudithook(hook)
from sandboxrun.packages.environment import Options, environment
from sandboxrun.packages.lock import read_lock
lock = read_lock({lock!r}, "requirements.lock")
print(environment(lock, cache={str(machine.cache)!r}, key={machine.key!r}, options=Options(), say=lambda text: None))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    other = Path(done.stdout.strip())
    assert other.is_dir() and other != path
    assert machine.content(other) == machine.content(path)


def test_what_is_not_cached_is_not_fetched_with_cached_only(machine: Machine, index: Index) -> None:
    text = machine.refused(published(index, *TWO), FetchError, cached_only=True)
    assert text == "requirements.lock: not in the cache, and --cached-only forbids fetching: first 1.0, second 1.0"
    assert index.requests == []


def test_the_installed_check_imports_little(machine: Machine, index: Index) -> None:
    lock = published(index, *TWO)
    machine.install(lock)
    program = f"""
import sys
from sandboxrun.packages.environment import installed
from sandboxrun.packages.lock import Lock
print(installed(Lock("requirements.lock", {lock_of(lock).sha256!r}, ()), cache={str(machine.cache)!r}, key={machine.key!r}))
heavy = "packaging tomllib subprocess httpx hashlib zipfile shutil sandboxrun.sandbox sandboxrun.fetch sandboxrun.packages.verify"
print([name for name in heavy.split() if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    path, heavy = done.stdout.splitlines()
    assert Path(path).is_dir()
    assert heavy == "[]"


def test_two_machines_a_month_apart_have_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_text(*TWO)
    contents, seals = [], []
    for number in range(2):
        machine = Machine(tmp_path / str(number))
        with serving(*TWO) as index:
            monkeypatch.setenv("PIP_INDEX_URL", index.url)
            if number:
                index.publish(wheel("first", "1.1"), wheel("first", "1.0.post1"), wheel("second", "2.0"))
                index.publish(wheel("first", "1.0", {"first.py": "x"}, tag=f"cp3{sys.version_info.minor}-none-any"))
                index.yank(TWO[0])
                machine.install(b"# something else first\n" + lock_text(TWO[1]))
            path = machine.install(lock)
        contents.append(machine.content(path))
        seals += [each.seal.content for each in verify.environments(str(machine.cache), machine.key) if each.path == str(path) and each.seal]  # fmt: skip
    assert contents[0] == contents[1]
    assert len(seals) == 2 and seals[0] == seals[1]


def test_markers_decide_what_is_installed(machine: Machine, index: Index) -> None:
    here, elsewhere = wheel("here"), wheel("elsewhere")
    index.publish(here, elsewhere)
    lock = (
        f"here==1.0 ; sys_platform == 'linux' and python_version >= '3.11' --hash=sha256:{here.sha256}\n"
        f"elsewhere==1.0 ; sys_platform == 'win32' --hash=sha256:{elsewhere.sha256}\n"
    ).encode()
    path = machine.install(lock)
    assert sorted(file.name for file in path.glob("*.py")) == ["here.py"]
    assert not any("elsewhere" in request for request in index.requests)
    twice = f"a==1 ; sys_platform == 'linux' --hash=sha256:{here.sha256}\na==2 --hash=sha256:{here.sha256}\n".encode()
    with pytest.raises(ScriptError, match="has a twice for this platform"):
        machine.install(twice)


def test_a_lock_without_packages_has_an_empty_environment(machine: Machine) -> None:
    assert list(machine.install(b"# nothing\n").iterdir()) == []


@pytest.mark.parametrize(
    "act", ["added", "removed", "renamed", "folder mode", "root mode", "root replaced", "seal", "another key"]
)
def test_what_the_cheap_check_sees_is_repaired(machine: Machine, index: Index, act: str) -> None:
    lock = published(index, *TWO)
    path = machine.install(lock)
    before = machine.content(path)
    folder = path / "first"
    path.chmod(0o755)
    folder.chmod(0o755)
    if act == "added":
        (folder / "more.py").write_text("planted")
    elif act == "removed":
        (folder / "data.txt").unlink()
    elif act == "renamed":
        (folder / "data.txt").rename(folder / "other.txt")
    elif act == "root replaced":
        path.rename(path.parent / "moved")
        path.mkdir(mode=0o755)
        (path / "first.py").write_text("planted")
    elif act == "seal":
        seal = path.with_suffix(".seal")
        seal.write_bytes(seal.read_bytes()[:-1] + b" ")
    elif act == "another key":
        Path(machine.key).unlink()
    if act not in ("folder mode",):
        folder.exists() and folder.chmod(0o555)
    if act not in ("root mode",):
        path.chmod(0o555)
    assert machine.installed(lock) is None
    assert machine.install(lock) == path
    assert machine.content(path) == before
    assert fault(verify.environments(str(machine.cache), machine.key)[0]) == ""
    assert machine.staging() == []


def changed(file: Path) -> None:
    """One byte, in place, as a program with this user's rights could."""
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    file.chmod(0o444)


def test_a_byte_changed_in_a_file_is_found_by_verification_and_after_a_boot(
    machine: Machine, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = published(index, *TWO)
    path = machine.install(lock)
    changed(path / "second.py")
    assert machine.installed(lock) == str(path)  # which is what it cannot see
    (found,) = verify.environments(str(machine.cache), machine.key)
    assert fault(found) == "has changed since it was made, as in 'second.py'"
    monkeypatch.setattr("sandboxrun.packages.seal.boot_id", lambda: "another")
    assert machine.installed(lock) is None
    machine.said.clear()
    machine.install(lock)
    assert machine.said[0] == f"{path} has changed since it was made, as in 'second.py'; it is installed again"
    assert (path / "second.py").read_text() == "VALUE = 42\n"
    assert machine.installed(lock) == str(path)


def test_the_first_start_of_a_boot_verifies_without_installing_again(
    machine: Machine, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = published(index, *TWO)
    path = machine.install(lock)
    number = path.stat().st_ino
    monkeypatch.setattr("sandboxrun.packages.seal.boot_id", lambda: "another")
    assert machine.install(lock) == path
    assert path.stat().st_ino == number
    assert machine.installed(lock) == str(path)


def test_a_byte_changed_in_a_cached_wheel_is_fetched_again(machine: Machine, index: Index) -> None:
    machine.install(published(index, *TWO))
    kept = machine.cache / f"wheels/{TWO[0].sha256}.whl"
    assert oct(kept.stat().st_mode & 0o7777) == "0o400"
    changed(kept)
    assert verify.damaged_wheels(str(machine.cache)) == [str(kept)]
    index.requests.clear()
    machine.install(b"# another\n" + lock_text(*TWO))
    assert [request for request in index.requests if "files" in request] == [f"/files/{TWO[0].filename}"]
    assert verify.damaged_wheels(str(machine.cache)) == []


def test_wheels_are_no_hard_links_to_anything(machine: Machine, index: Index) -> None:
    """An edit through one of them would change another environment."""
    first = machine.install(published(index, *TWO))
    second = machine.install(b"# another\n" + lock_text(*TWO))
    files = [file for path in (first, second) for file in path.rglob("*") if file.is_file()]
    assert {file.stat().st_nlink for file in files} == {1}
    changed(first / "second.py")
    assert (second / "second.py").read_text() == "VALUE = 42\n"


def start(machine: Machine, lock: bytes) -> subprocess.Popen[str]:
    program = f"""
from sandboxrun.packages.environment import Options, environment
from sandboxrun.packages.lock import read_lock
lock = read_lock({lock!r}, "requirements.lock")
print(environment(lock, cache={str(machine.cache)!r}, key={machine.key!r}, options=Options(), say=lambda text: print(text, flush=True)), flush=True)
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_of_two_first_starts_the_second_waits(machine: Machine, index: Index) -> None:
    lock = published(index, *TWO)
    outputs = [
        process.communicate(timeout=60)[0].splitlines() for process in [start(machine, lock), start(machine, lock)]
    ]
    assert outputs[0][-1] == outputs[1][-1]
    installing = [output for output in outputs if "installing 2 packages of requirements.lock" in output]
    assert len(installing) == 1
    assert len([request for request in index.requests if "files" in request]) == 2


@pytest.mark.parametrize("when", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_after_a_kill_nothing_half_made_is_used_and_the_next_start_tidies_up(
    machine: Machine, index: Index, when: float
) -> None:
    many = wheel("many", files={f"many/m{number}.py": f"x = {number}\n" * 200 for number in range(300)})
    lock = published(index, many)
    process = start(machine, lock)
    assert process.stdout is not None
    while "installing" not in process.stdout.readline():
        pass
    time.sleep(when)
    process.kill()
    process.communicate()
    found = machine.installed(lock)
    assert found is None or fault(verify.environments(str(machine.cache), machine.key)[0]) == ""
    path = machine.install(lock)
    assert len(list(path.glob("many/*.py"))) == 300
    if found is None:  # else nothing was left to be installed
        assert machine.staging() == []
    assert len(machine.environments()) == 1


def test_a_full_disk_leaves_nothing_half_made(machine: Machine, index: Index) -> None:
    big = wheel("big", files={"big.py": "x = 1\n", "data.bin": os.urandom(1 << 16) * 8})
    lock = published(index, big)
    machine.install(b"# the wheel is cached\n" + lock)
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 17}, {1 << 17}))\n"
    program = f"""
{limited}
from sandboxrun.packages.environment import Options, environment
from sandboxrun.packages.lock import read_lock
lock = read_lock({lock!r}, "requirements.lock")
try:
    environment(lock, cache={str(machine.cache)!r}, key={machine.key!r}, options=Options(), say=lambda text: None)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "ScriptError big-1.0-py3-none-any.whl cannot be unpacked: File too large\n"
    assert machine.installed(lock) is None
    assert machine.staging() == []
    assert machine.install(lock).is_dir()


def test_without_pip_the_error_says_what_to_install(
    machine: Machine, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoPip:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "pip":
                raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, "meta_path", [NoPip(), *sys.meta_path])
    with pytest.raises(UsageError, match="this Python has no pip") as error:
        machine.install(published(index, *TWO))
    assert error.value.hint == (install_hint(["pip"]),)


def test_another_users_cache_is_not_written(machine: Machine, index: Index) -> None:
    machine.cache.mkdir(mode=0o777)
    machine.cache.chmod(0o777)
    with pytest.raises(Exception, match="can be written by others"):
        machine.install(published(index, *TWO))
    assert index.requests == []


def test_a_file_that_nobody_made_is_no_environment(machine: Machine, index: Index) -> None:
    lock = published(index, *TWO)
    path = machine.install(lock)
    planted = path.parent / ("f" * 64)
    planted.mkdir()
    faults = {Path(each.path).name: fault(each) for each in verify.environments(str(machine.cache), machine.key)}
    assert faults == {
        path.name: "",
        planted.name: "has no valid record: sandboxrun did not finish it, or did not make it",
    }


def test_an_index_with_other_bytes_is_refused(machine: Machine, index: Index) -> None:
    lock = published(index, *TWO)
    other = wheel("first", files={"first.py": "planted"})
    index.serve_instead(TWO[0], other.data)
    text = machine.refused(lock, IntegrityError)
    assert text == f"the index has first 1.0 with sha256 {other.sha256}, which requirements.lock does not pin"


def test_a_cache_behind_a_symlink_is_used(tmp_path: Path, index: Index) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/cache").symlink_to(tmp_path / "disk")
    machine = Machine(tmp_path / "home")
    path = machine.install(published(index, *TWO))
    assert run(path)[0] == "42"


def test_on_a_file_system_without_space_nothing_half_made_is_used(tmp_path: Path, index: Index) -> None:
    """ENOSPC, while files are written and while the environment is finished."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        machine = Machine(small)
        big = wheel("big", files={"big.py": "x = 1\n", "data.bin": os.urandom(600_000)})
        lock = published(index, big)
        with pytest.raises((ScriptError, FetchError)):
            machine.install(lock)
        assert machine.installed(lock) is None
        assert machine.environments() == []
        assert machine.staging() == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
