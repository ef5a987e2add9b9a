"""What a worker is told of a refusal: grants that are enough if they are followed, or why there is none."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from arena import Arena

_LINE = re.compile(r"Requires \w+ access to \".*\"; grant it with: --allow-(\w+)=(\S+) \(field allow\w+ of test:1:h\)")
_ROUNDS_MAX = 6


def followed(arena: Arena, code: str, **variables: str) -> dict[str, str]:
    """The grants that the lines name, one run after the other, until the attempt works."""
    allow: dict[str, str] = {}
    for _ in range(_ROUNDS_MAX):
        arena.empty_scratch()
        held = arena.confined(code, allow=allow, **variables)
        if held.value == "works":
            return allow
        named = [match.groups() for line in held.stderr.splitlines() if (match := _LINE.fullmatch(line))]
        assert named, f"with {allow}: {held.stderr}"
        for kind, grant in named:
            assert grant != "/" and grant not in allow.get(kind, "").split(","), (grant, held.stderr)
            allow[kind] = ",".join(filter(None, (allow.get(kind, ""), grant)))
    raise AssertionError(f"it does not work with {allow}: {held.stderr}")


def attempt(statements: str) -> str:
    """An attempt that shows its error as a worker's is shown."""
    return (
        "def attempt():\n    try:\n"
        + "".join(f"        {line}\n" for line in statements.splitlines())
        + "    except Exception as error:\n"
        "        sys.excepthook(type(error), error, error.__traceback__)\n        return 'refused'\n"
        "    return 'works'\n"
    )


@pytest.mark.parametrize(
    ("statements", "grants"),
    [
        ("import subprocess\nsubprocess.run(['true'], check=True)", {"run": "true"}),
        ("import subprocess\nsubprocess.run('true', check=True)", {"run": "true"}),
        ("import subprocess\nsubprocess.check_output(['/bin/echo', 'x'])", {"run": "/bin/echo"}),
        ("import subprocess\nsubprocess.run('cat </dev/null | wc -l', shell=True, check=True)", {"run": "sh,cat,wc"}),
        ("import subprocess\nsubprocess.Popen(['x'], executable='/bin/true').wait()", {"run": "/bin/true"}),
        ("import subprocess\nsubprocess.run(['true'], close_fds=False, check=True)", {"run": "true"}),
        ("assert os.popen('echo x').read() == 'x\\n'", {"run": "sh"}),
        ("assert os.system('cat </dev/null') == 0", {"run": "sh,cat"}),
        ("assert os.system('A=1 wc -c </dev/null >out && rm out') == 0", {"run": "sh,wc,rm"}),
        ("os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)", {"run": "/bin/true"}),
        ("os.waitpid(os.posix_spawnp('true', ['true'], {}), 0)", {"run": "true"}),
        ("assert os.spawnlp(os.P_WAIT, 'true', 'true') == 0", {"run": "true"}),
        ("if not os.fork(): os._exit(0)\nos.wait()", {"run": "true"}),
        ("if not os.fork(): os.execlp('sleep', 'sleep', '0')\nassert os.wait()[1] == 0", {"run": "true,sleep"}),
        (
            "import asyncio\nasync def go(): await (await asyncio.create_subprocess_exec('true')).wait()\nasyncio.run(go())",
            {"run": "true"},
        ),
        ("import multiprocessing\np = multiprocessing.Process(target=int)\np.start()\np.join()", {"run": "true"}),
    ],
)
def test_the_grants_for_programs_and_processes(arena: Arena, statements: str, grants: dict[str, str]) -> None:
    assert followed(arena, attempt(statements)) == grants


@pytest.mark.parametrize(
    "statements",
    [
        "import multiprocessing\nmultiprocessing.Lock().acquire()",
        "import multiprocessing\nmultiprocessing.Semaphore(2)",
        "from multiprocessing.pool import ThreadPool\nThreadPool(1).close()",
        "import _posixshmem\nos.close(_posixshmem.shm_open('/sandboxrun-test', os.O_CREAT | os.O_RDWR, mode=0o600))\n"
        "_posixshmem.shm_unlink('/sandboxrun-test')",
    ],
)
def test_semaphores_and_shared_memory_need_their_folder_and_nothing_more(arena: Arena, statements: str) -> None:
    assert followed(arena, attempt(statements)) == {"read": "/dev/shm", "write": "/dev/shm"}


def test_a_block_of_shared_memory_needs_the_process_that_tidies_it_too(arena: Arena) -> None:
    code = attempt(
        "from multiprocessing.shared_memory import SharedMemory\nm = SharedMemory(create=True, size=10)\nm.close()\nm.unlink()"
    )
    grants = followed(arena, code)
    assert set(grants) == {"read", "write", "run"} and (grants["read"], grants["write"]) == ("/dev/shm", "/dev/shm")
    assert Path(grants["run"]).name.startswith("python")


@pytest.mark.parametrize(
    "opening",
    [
        "V['db']",
        "V['db'].encode()",
        "__import__('pathlib').Path(V['db'])",
        "'file:' + V['db'], uri=True",
        "V['db'], isolation_level=None",
    ],
)
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_database_of_sqlite_needs_its_folder(arena: Arena, tmp_path: Path, opening: str, mode: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    code = attempt(
        f"import sqlite3\nc = sqlite3.connect({opening})\nc.execute('PRAGMA journal_mode={mode}')\n"
        "c.execute('CREATE TABLE IF NOT EXISTS t (x)')\nc.execute('INSERT INTO t VALUES (1)')\nc.commit()\nc.close()"
    )
    assert followed(arena, code, db=str(folder / "my.db")) == {"read": str(folder), "write": str(folder)}


def test_a_database_that_may_only_be_read_names_its_folder_when_it_is_written(arena: Arena, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    db = str(folder / "my.db")
    make = "import sqlite3\nc = sqlite3.connect(V['db'])\nc.execute('CREATE TABLE t (x)')\nc.close()"
    assert arena.unconfined(attempt(make), db=db).value == "works"
    write = "import sqlite3\nc = sqlite3.connect(V['db'])\nc.execute('INSERT INTO t VALUES (1)')\nc.commit()"
    held = arena.confined(attempt(write), allow={"read": str(folder)}, db=db)
    assert held.value == "refused"
    assert _LINE.findall(held.stderr) == [("write", str(folder))], held.stderr


def test_a_database_that_is_refused_for_another_reason_names_no_grant(arena: Arena, tmp_path: Path) -> None:
    for path in (f"{tmp_path}/absent/my.db", "scratch-that-is-no-folder/my.db"):
        held = arena.confined(attempt("import sqlite3\nsqlite3.connect(V['db'])"), db=path)
        assert held.value == "refused" and "grant it with" not in held.stderr, held.stderr


@pytest.mark.parametrize(
    ("statements", "grants"),
    [
        ("os.unlink(V['a'] + '/f')", {"write": "{a}"}),
        ("os.rename(V['a'] + '/f', V['b'] + '/f')", {"write": "{a},{b}"}),
        ("os.symlink(V['a'] + '/f', V['b'] + '/l')", {"write": "{b}"}),
        ("os.mkdir(V['a'] + '/d')", {"write": "{a}"}),
        ("os.rmdir(V['a'] + '/empty')", {"write": "{a}"}),
        ("open(V['a'] + '/f', 'r+').close()", {"read": "{a}/f", "write": "{a}/f"}),
        ("open(V['a'] + '/new', 'w+').close()", {"read": "{a}", "write": "{a}"}),
        ("os.close(os.open(V['a'] + '/f', os.O_RDWR))", {"read": "{a}/f", "write": "{a}/f"}),
        ("os.close(os.open(V['a'] + '/f', os.O_WRONLY))", {"write": "{a}/f"}),
        ("os.utime(V['a'] + '/f')", {"write": "{a}/f"}),
        ("os.chmod(V['a'] + '/f', 0o644)", {"write": "{a}/f"}),
        ("import dbm.dumb\ndbm.dumb.open(V['a'] + '/d', 'c').close()", {"write": "{a}"}),
        ("import socket\nsocket.create_server(('127.0.0.1', V['port'])).close()", {"listen": "127.0.0.1:{port}"}),
    ],
)
def test_the_grants_for_files_and_listening_are_enough(
    arena: Arena, tmp_path: Path, statements: str, grants: dict[str, str]
) -> None:
    variables = {name: str(tmp_path / name) for name in ("a", "b")} | {"port": "45671"}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/empty").mkdir()
    (tmp_path / "a/f").write_text("x")
    found = followed(arena, attempt(statements.replace("V['port']", "45671")), **variables)
    assert found == {kind: text.format(**variables) for kind, text in grants.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        "ExceptionGroup('x', [ValueError(), error])",
        "ExceptionGroup('x', [ExceptionGroup('y', [error])])",
        "RuntimeError('x')",
    ],
)
def test_a_refusal_in_a_group_or_as_a_cause_is_explained(arena: Arena, wrap: str) -> None:
    code = attempt(f"try:\n    open('/etc/shadow')\nexcept OSError as error:\n    raise {wrap} from error")
    held = arena.confined(code.replace("from error", "from error" if "Runtime" in wrap else "from None"))
    assert _LINE.findall(held.stderr) == [("read", "/etc/shadow")], held.stderr


NONE = {
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)": "Requires a UDP socket, which no grant gives",
    "import socket\nsocket.socket(socket.AF_UNIX)": "Requires a socket of AF_UNIX and SOCK_STREAM, which no grant gives",
    "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)": "Requires a socket of AF_NETLINK and SOCK_RAW, which no",
    "os.kill(1, 0)": "Requires sending signals to processes outside of the sandbox, which no grant gives",
    "os.chown('f', 0, 0)": "Requires changing the owner of a file, which no grant gives",
    "os.mkfifo('fifo')": "Requires making a FIFO or a device node, which no grant gives",
    "os.setxattr('f', 'user.x', b'y')": "Requires changing extended attributes of a file, which no grant gives",
    "os.setsid()": "Requires a session or a process group of its own, which no grant gives",
    "import pty\npty.openpty()": "Requires a terminal of its own, which no grant gives",
    "open('/etc/new', 'w')": 'Requires write access to "/etc/new", which no grant gives: /etc has programs or settings',
    "os.mkdir('/new')": 'Requires write access to "/new", which no grant gives: / has programs or settings',
    "import subprocess\nsubprocess.run(['no-such-program'])": 'Requires run access to "no-such-program", which is no program here',
    "import subprocess\nopen('mine', 'w').write('#!/bin/sh')\nos.chmod('mine', 0o700)\nsubprocess.run(['./mine'])": (
        'Requires run access to "./mine", which no grant gives: the worker could have written it'
    ),
}


@pytest.mark.parametrize("statements", NONE)
def test_what_no_grant_gives_is_said_and_no_grant_is_named(arena: Arena, statements: str) -> None:
    held = arena.confined("open('f', 'w').close()\n" + attempt(statements))
    assert held.value == "refused", held
    assert NONE[statements] in held.stderr and "grant it with" not in held.stderr, held.stderr


def test_a_file_that_is_granted_and_refused_by_its_own_mode_is_not_granted_once_more(
    arena: Arena, tmp_path: Path
) -> None:
    import os

    if os.geteuid() == 0:
        pytest.skip("no mode refuses root")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "f").write_text("x")
    (folder / "f").chmod(0)
    held = arena.confined(attempt("open(V['f'])"), allow={"read": str(folder)}, f=str(folder / "f"))
    assert held.value == "refused" and "which is granted: the file's own owner, mode or kind refuses it" in held.stderr


def test_a_shell_that_may_run_says_which_program_it_could_not(arena: Arena) -> None:
    code = attempt("import subprocess\nsubprocess.run('cat </dev/null; wc -c </dev/null', shell=True, check=True)")
    held = arena.confined(code, allow={"run": "sh,cat"})
    assert _LINE.findall(held.stderr) == [("run", "wc")], held.stderr


@pytest.mark.parametrize("status", ["exit 3", "exit 127", "no-such-program-at-all", "exit 126"])
def test_a_command_that_fails_by_itself_is_not_explained(arena: Arena, status: str) -> None:
    held = arena.confined(attempt(f"os.system({status!r})"), allow={"run": "sh"})
    assert held.value == "works" and "Requires" not in held.stderr, held.stderr


@pytest.mark.parametrize(
    "statements",
    [
        "raise PermissionError('not for you')",
        "raise PermissionError(1, 'not for you')",
        "raise OSError(13, 'not for you')",
        "int('x')",
        "raise ImportError('not here')",
    ],
)
def test_an_error_of_the_scripts_own_is_not_explained(arena: Arena, statements: str) -> None:
    held = arena.confined(attempt(statements))
    assert held.value == "refused" and "Requires" not in held.stderr and "hint" not in held.stderr, held.stderr


def test_a_worker_that_takes_system_apart_keeps_its_status(arena: Arena) -> None:
    held = arena.confined(
        "sys.modules['sandboxrun.sandbox.child.programs'] = None\n" + attempt("assert os.system('x') == 127 << 8")
    )
    assert held.value == "works", held.stderr


def test_python_itself_is_named_by_its_path(arena: Arena) -> None:
    held = arena.confined(attempt("import subprocess\nsubprocess.run([sys.executable, '-c', ''], check=True)"))
    assert _LINE.findall(held.stderr) == [("run", sys.executable)], held.stderr
