"""A wheel that has taken over the process that unpacks it: in its place runs an attack, which knows all that it knows."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from arena import Listener, wait_for
from installer import Machine
from wheels import wheel

from sandboxrun.errors import IntegrityError, ScriptError
from sandboxrun.packages import install

FRAME = """\
import errno, json, os, socket, sys
V = json.loads({variables!r})
outcomes = []
def attempt(name, act):
    try:
        act()
        outcomes.append(name + "=works")
    except OSError as error:
        outcomes.append(name + "=" + errno.errorcode.get(error.errno, "?"))
{code}
print(json.dumps({{"wheel": 0, "cause": " ".join(outcomes)}}) if outcomes else json.dumps({{"ok": True}}))
"""
OUTSIDE = """\
def connect(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", V["port"]))
def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", V["udp"]))
def write(path):
    with open(path, "x") as file:
        file.write("canary")
attempt("connect", connect)
attempt("udp", send)
attempt("beside", lambda: write(V["beside"]))
attempt("cache", lambda: write(V["cache"]))
attempt("home", lambda: open(V["home"], "rb").read())
attempt("wheel", lambda: os.rename(V["wheel"], V["wheel"] + "2"))
attempt("key", lambda: open(V["key"], "rb").read())
attempt("list", lambda: os.listdir(V["folder"]))
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("exec", lambda: os.posix_spawn("/bin/true", ["true"], {}))
"""


def program(path: Path, code: str, **variables: object) -> Path:
    path.write_text(FRAME.format(variables=json.dumps(variables), code=textwrap.dedent(code)))
    return path


@pytest.fixture
def attack(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Run code in the place of unpack.py, with one wheel; the line of the error."""

    def run(code: str, kind: type[Exception] = ScriptError, **variables: object) -> str:
        monkeypatch.setattr(install, "_PROGRAM", str(program(tmp_path / "attack.py", code, **variables)))
        return machine.refused(machine.cached(wheel("evil")), kind)  # type: ignore[arg-type]

    return run


def test_it_reaches_neither_the_network_nor_a_file_elsewhere(
    attack: object, machine: Machine, listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the operator")
    machine.cached(wheel("evil"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        (kept,) = (machine.cache / "wheels").glob("*.whl")
        variables = {
            "port": listener.port,
            "udp": udp.getsockname()[1],
            "beside": str(tmp_path / "canary"),
            "cache": str(machine.cache / "canary"),
            "home": str(tmp_path / "secret"),
            "wheel": str(kept),
            "key": machine.key,
            "folder": str(tmp_path),
        }
        free = program(tmp_path / "free.py", OUTSIDE, **variables)
        done = subprocess.run([sys.executable, str(free)], capture_output=True, text=True, check=True)
        assert set(re.findall("=(\\w+)", json.loads(done.stdout.splitlines()[-1])["cause"])) == {"works"}
        assert udp.recv(9) == b"x"
        wait_for(lambda: listener.connections == 1)
        for path in (tmp_path / "canary", machine.cache / "canary"):
            path.unlink()
        kept.with_name(kept.name + "2").rename(kept)

        line = attack(OUTSIDE, **variables)  # type: ignore[operator]
        assert line == (
            "evil-1.0-py3-none-any.whl connect=ENOSYS udp=EPERM beside=EACCES cache=EACCES home=EACCES wheel=EACCES "
            "key=EACCES list=EACCES fork=EPERM exec=EPERM"
        )
        assert listener.connections == 1
        with pytest.raises(BlockingIOError):
            udp.recv(9)
    assert not (tmp_path / "canary").exists() and not (machine.cache / "canary").exists()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("os.symlink('/etc/passwd', 'link')", "'link' is neither a file nor a folder"),
        ("os.mkdir('a'); os.symlink('..', 'a/link')", "'a/link' is neither a file nor a folder"),
        ("open('a', 'w').close(); os.link('a', 'b')", "'a' has a second name, or is no file"),
        ("os.close(os.open('a', os.O_CREAT | os.O_WRONLY, 0o6755))", "'a' has another owner, or special rights"),
        ("os.mkdir('a', 0o1777)", "'a' has another owner, or special rights"),
        ("open('x.pth', 'w').close()", "'x.pth' is no name for a package"),
        ("open('sitecustomize.py', 'w').close()", "'sitecustomize.py' is no name for a package"),
        ("os.mkdir('usercustomize')", "'usercustomize' is no name for a package"),
        ("os.mkdir('sandboxrun')", "'sandboxrun' is no name for a package"),
        ("open('sandboxrun.py', 'w').close()", "'sandboxrun.py' is no name for a package"),
        ("open('A.py', 'w').close(); open('a.py', 'w').close()", "'a.py' differs from 'A.py' in case alone"),
        ("open('new\\nline', 'w').close()", "has a character that no file of a wheel needs"),
        ("open(b'\\xff', 'w').close()", "has a character that no file of a wheel needs"),
        ("os.makedirs('/'.join('d' * 70))", "lies too deep"),
    ],
)  # fmt: skip
def test_what_it_leaves_in_the_folder_is_refused(attack: object, code: str, cause: str) -> None:
    line = attack(code, IntegrityError)  # type: ignore[operator]
    assert line.startswith("the packages of requirements.lock are not installed: ")
    assert cause in line


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("os._exit(3)", "failed with exit code 3"),
        ("os.kill(os.getpid(), 9)", "was ended by signal 9"),
        ("bytearray(8 << 30)", "failed with exit code 1"),
        ("print('{' * 100000)", "gave no answer"),
        ("print('{\"ok\": true}')", "gave no answer"),
        ("sys.stderr.write('x' * 1000000); os._exit(0)", "gave no answer"),
        ('print(\'{"wheel": 7, "cause": "x"}\'); os._exit(0)', "gave no answer"),
    ],
)
def test_a_child_that_does_not_answer_in_order_installs_nothing(attack: object, code: str, cause: str) -> None:
    assert cause in attack(code)  # type: ignore[operator]


def test_what_it_says_cannot_drive_a_terminal(attack: object) -> None:
    line = attack("outcomes.append('\\x1b[2J\\n' + 'x' * 5000)")  # type: ignore[operator]
    assert line.startswith("evil-1.0-py3-none-any.whl \\x1b[2J\\nxxx")
    assert len(line) < 400


def test_a_child_that_never_ends_is_killed(attack: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "SECONDS", 1)
    assert "were not unpacked within 1 s" in attack("import time\ntime.sleep(600)")  # type: ignore[operator]


def test_a_child_that_fills_the_disk_is_killed(
    attack: object, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    import time
    for number in range(100):
        with open(str(number), 'wb') as file:
            file.write(b"x" * (1 << 20))
    time.sleep(600)
    """
    monkeypatch.setattr(install, "_BLOCK_BYTES", 0)
    path = machine.folder / "attack.py"
    program(path, code)
    monkeypatch.setattr(install, "_PROGRAM", str(path))
    text = machine.refused(machine.cached(wheel("evil")), ScriptError, unpacked_max=2 << 20)
    assert "unpacked they have more than 2097152 bytes or 20000 files" in text
    text = machine.refused(machine.cached(wheel("evil")), ScriptError, unpacked_max=1 << 18)
    assert "failed with exit code" in text  # RLIMIT_FSIZE


def test_more_than_the_limits_is_refused_afterwards(
    attack: object, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.folder / "attack.py"
    monkeypatch.setattr(install, "_PROGRAM", str(path))
    for code in ("for n in range(30): open(str(n), 'w').close()", "for n in range(9): open(f'{n}.pyc', 'w').close()"):
        program(path, code)
        text = machine.refused(machine.cached(wheel("evil")), IntegrityError, files_max=20)
        assert text.endswith("are more than the limits allow")


def test_neither_our_environment_nor_an_open_file_reaches_it(
    attack: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_TOKEN", "secret")
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    code = """
    outcomes.append(",".join(sorted(set(os.environ) - {"UNPACK"})))
    outcomes.append(str(sorted(fd for fd in range(3, 500) if os.path.exists(f"/proc/self/fd/{fd}"))))
    """
    line = attack(code)  # type: ignore[operator]
    os.close(fd)
    names = line.split()[1]
    assert set(names.split(",")) <= {"LANG", "HOME", "LC_CTYPE"}
