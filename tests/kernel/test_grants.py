"""What grants of files, programs and listening allow, and that they allow no more."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from arena import CONFINE, Arena, Listener, wait_for

from sandboxrun.sandbox.compile import elf as program

CHANGE = """
import ctypes, stat
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result:
        raise OSError(ctypes.get_errno(), "libc")
def change(way, path):
    if way == "chmod": os.chmod(path, 0o640)
    elif way == "fchmod":
        fd = os.open(path, os.O_RDONLY)
        os.fchmod(fd, 0o640)
    elif way == "fchmodat":
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        os.chmod(os.path.basename(path), 0o640, dir_fd=folder)
    elif way == "relative":
        os.chmod(os.path.relpath(path), 0o640)
    elif way == "utime": os.utime(path, (1, 2))
    elif way == "futimens":
        fd = os.open(path, os.O_RDONLY)
        os.utime(fd, (1, 2))
    elif way == "utime now": os.utime(path)
    elif way == "folder": os.chmod(os.path.dirname(path), 0o750)
    return way
def attempt():
    return change(V["way"], V["path"])
"""
WAYS = ["chmod", "fchmod", "fchmodat", "relative", "utime", "futimens", "utime now", "folder"]


@pytest.mark.parametrize("way", WAYS)
def test_mode_and_times_of_what_can_be_written_are_changed(arena: Arena, tmp_path: Path, way: str) -> None:
    data = tmp_path / "data"
    for folder in (data, arena.scratch):
        folder.mkdir(exist_ok=True)
        file = folder / "file"
        file.touch()
        before = (file.stat().st_mode, file.stat().st_mtime, folder.stat().st_mode)
        time.sleep(0.02)  # the kernel's clock of files
        found = arena.confined(CHANGE, allow={"read": str(data), "write": str(data)}, way=way, path=str(file))
        assert found.value == way, found
        assert (file.stat().st_mode, file.stat().st_mtime, folder.stat().st_mode) != before


@pytest.mark.parametrize("way", [way for way in WAYS if way != "folder"])
@pytest.mark.parametrize("where", ["read", "nowhere", "symlink", "dot-dot", "hidden part"])
def test_mode_and_times_of_other_files_are_not(arena: Arena, tmp_path: Path, way: str, where: str) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    for folder in (data, other, data / "hidden"):
        folder.mkdir()
    file = (data / "hidden" if where == "hidden part" else other) / "file"
    file.touch(mode=0o600)
    os.utime(file, (1000, 1000))
    path, allow, deny = str(file), {"write": str(data), "read": str(data)}, {}
    if where in ("read", "symlink", "dot-dot"):  # readable, so that descriptors can be had
        allow["read"] = f"{data},{other}"
    if where == "symlink":
        (arena.scratch / "link").symlink_to(file)
        path = str(arena.scratch / "link")
    if where == "dot-dot":
        path = f"{data}/../other/file"
    if where == "hidden part":
        deny = {"write": str(data / "hidden")}
    free = arena.unconfined(CHANGE, way=way, path=path)
    assert free.value == way, free
    file.chmod(0o600)
    os.utime(file, (1000, 1000))
    held = arena.confined(CHANGE, allow=allow, deny=deny, way=way, path=path)
    readable = where != "nowhere"
    assert held.errno == ("EPERM" if readable or way in ("chmod", "relative", "utime", "utime now") else "EACCES"), held
    assert (file.stat().st_mode & 0o7777, file.stat().st_mtime) == (0o600, 1000)


def test_a_file_cannot_be_made_to_run_with_its_owners_rights(arena: Arena) -> None:
    code = "def attempt():\n    open('f', 'w').close()\n    os.chmod('f', V['mode'])\n    return 'set'"
    for mode in (0o4755, 0o2755):
        arena.refused(code, "EPERM", works="set", mode=mode)
        assert (arena.scratch / "f").stat().st_mode & 0o6000 == 0


def test_a_symlink_swapped_while_its_mode_is_changed_leads_nowhere(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        import threading, time
        open("mine", "w").close()
        os.symlink("mine", "link")
        stop = []
        def swap():
            while not stop:
                for target in (V["victim"], "mine"):
                    os.symlink(target, "new")
                    os.rename("new", "link")
        thread = threading.Thread(target=swap)
        thread.start()
        done = refused = 0
        end = time.monotonic() + 20
        # Until both were met: the victim changed where that is possible, else refused.
        while time.monotonic() < end and (done < 300 or not (refused or os.stat(V["victim"]).st_mode & 0o066)):
            try:
                os.chmod("link", 0o666)
                done += 1
            except PermissionError:
                refused += 1
        stop.append(1)
        thread.join()
        return [done >= 300, refused > 0]
    """
    victim = tmp_path / "victim"
    victim.touch(mode=0o600)
    assert arena.unconfined(code, victim=str(victim)).value == [True, False]
    assert victim.stat().st_mode & 0o777 == 0o666
    victim.chmod(0o600)
    arena.empty_scratch()
    assert arena.confined(code, victim=str(victim)).value == [True, True]
    assert victim.stat().st_mode & 0o777 == 0o600


def test_files_are_copied_and_archives_unpacked(arena: Arena) -> None:
    code = """
    def attempt():
        import shutil, tarfile, zipfile
        with open("a", "w") as file:
            file.write("text")
        os.chmod("a", 0o640)
        shutil.copy("a", "b"); shutil.copy2("a", "c"); shutil.copystat("a", "b")
        with tarfile.open("t.tar", "w") as tar:
            tar.add("a")
        with tarfile.open("t.tar") as tar:
            tar.extractall("out")
        shutil.make_archive("z", "zip", "out")
        with zipfile.ZipFile("z.zip") as archive:
            archive.extractall("out2")
        shutil.copytree("out", "out3")
        return [open(path).read() for path in ("b", "c", "out/a", "out2/a", "out3/a")] + [oct(os.stat("c").st_mode & 0o777)]
    """
    assert arena.confined(code).value == ["text"] * 5 + ["0o640"]


def test_a_tree_with_symlinks_is_copied_with_their_own_times(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        import shutil
        os.mkdir("tree")
        open("tree/file", "w").close()
        os.symlink("file", "tree/inside")
        os.symlink(V["outside"], "tree/outside")
        os.utime("tree/inside", (1000, 2000), follow_symlinks=False)
        os.utime("tree/outside", (1000, 2000), follow_symlinks=False)
        shutil.copytree("tree", "copy", symlinks=True)
        return [os.lstat(f"copy/{name}").st_mtime == 2000 for name in ("inside", "outside", "file")]
    """
    outside = tmp_path / "outside"
    outside.touch()
    os.utime(outside, (1, 1))
    for run in (arena.unconfined, arena.confined):
        assert run(code, outside=str(outside)).value == [True, True, False]
        assert outside.stat().st_mtime == 1
        arena.empty_scratch()


READ_ALL = """
def attempt():
    found = {}
    for path in V["paths"]:
        try:
            found[path] = open(path).read() if not os.path.isdir(path) else sorted(os.listdir(path))
        except OSError as error:
            found[path] = errno.errorcode[error.errno]
    return found
"""


def test_a_denied_part_of_a_granted_folder_stays_closed(arena: Arena, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("a/x", "a/keys/private", "b/y"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "a" / "way-in").symlink_to(tree / "a" / "keys")
    paths = [str(tree / name) for name in ("a/x", "b/y", "b", "a/keys/private", "a/keys", "a/way-in/private", "a", ".")]
    free = arena.unconfined(READ_ALL, paths=paths).value
    assert free[paths[3]] == free[paths[5]] == "a/keys/private"
    held = arena.confined(READ_ALL, allow={"read": str(tree)}, deny={"read": str(tree / "a" / "keys")}, paths=paths)
    assert list(held.value.values()) == ["a/x", "b/y", ["y"], *["EACCES"] * 5]


def test_a_denied_part_of_a_writable_folder_stays_as_it_is(arena: Arena, tmp_path: Path) -> None:
    code = """
    def attempt():
        found = []
        for path in V["paths"]:
            try:
                with open(path, "w") as file:
                    file.write("written")
                found.append("written")
            except OSError as error:
                found.append(errno.errorcode[error.errno])
        return found
    """
    data = tmp_path / "data"
    (data / "keep").mkdir(parents=True)
    (data / "other").mkdir()
    (data / "keep" / "file").write_text("kept")
    paths = [str(data / "other" / "new"), str(data / "keep" / "file"), str(data / "keep" / "new"), str(data / "new")]
    held = arena.confined(code, allow={"write": str(data)}, deny={"write": str(data / "keep")}, paths=paths)
    assert held.value == ["written", "EACCES", "EACCES", "EACCES"]
    assert (data / "keep" / "file").read_text() == "kept"
    assert arena.unconfined(code, paths=paths).value == ["written"] * 4


RUN = """
def attempt():
    import subprocess
    return subprocess.run(V["command"], capture_output=True, text=True, check=True).stdout
"""


def test_a_granted_program_runs_and_no_other(arena: Arena) -> None:
    allow = {"run": "echo"}
    assert arena.confined(RUN, allow=allow, command=["echo", "hi"]).value == "hi\n"
    assert arena.confined(RUN, allow=allow, command=["/usr/bin/echo", "hi"]).value == "hi\n"
    assert arena.confined(RUN, command=["echo", "hi"]).errno == "EPERM"
    assert arena.unconfined(RUN, command=["env", "echo", "hi"]).value == "hi\n"
    assert arena.confined(RUN, allow=allow, command=["/usr/bin/env", "echo", "hi"]).errno == "EACCES"
    assert (
        arena.confined(RUN, allow={"run": "echo,env"}, deny={"run": "/usr/bin/env"}, command=["/usr/bin/env"]).errno
        == "EACCES"
    )


def test_a_script_runs_with_its_interpreter(arena: Arena, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $1 $(( 6 * 7 ))\n")
    script.chmod(0o755)
    assert arena.confined(RUN, allow={"run": str(script)}, command=[str(script), "is"]).value == "is 42\n"


@pytest.mark.parametrize("way", ["written", "copied"])
def test_what_the_worker_wrote_does_not_run(arena: Arena, way: str) -> None:
    code = (
        RUN
        + "\nrun = attempt\n"
        + """
def attempt():
    if V["way"] == "written":
        with open("program", "w") as file:
            file.write("#!/bin/sh\\necho ran\\n")
    else:
        with open("/usr/bin/echo", "rb") as source, open("program", "wb") as copy:
            copy.write(source.read())
    os.chmod("program", 0o755)
    V["command"] = ["./program", "ran"]
    return run()
"""
    )
    arena.refused(code, "EACCES", works="ran\n", allow={"run": "sh,echo"}, way=way)


def test_the_dynamic_loader_leads_nowhere(arena: Arena) -> None:
    code = RUN.replace("check=True).stdout", "check=False).stderr")
    loader = program.loaded_with("/usr/bin/cat")[1]
    held = arena.confined(
        code, allow={"run": "echo", "read": "/usr/bin/cat"}, command=[loader, "/usr/bin/cat", "/etc/passwd"]
    )
    assert "/etc/passwd: Permission denied" in held.value


@pytest.mark.parametrize(
    ("what", "python"),
    [
        ("file", "open('/etc/passwd').read()"),
        ("write", "open({outside!r}, 'w').write('x')"),
        ("connect", "import socket; socket.create_connection(('127.0.0.1', {port}))"),
        ("udp", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"),
        ("listen", "import socket; socket.socket().listen()"),
        ("signal", "import os; os.kill({victim}, 15)"),
        ("supervisor", "import os; os.kill({supervisor}, 15)"),
        ("ptrace", "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\nif libc.ptrace(16, {victim}, 0, 0): raise OSError(ctypes.get_errno(), 'ptrace')"),
        ("session", "import os; os.setsid()"),
        ("exec", "import os; os.execv('/usr/bin/env', ['env'])"),
        ("privileges", "import os, re; s = open('/proc/self/status').read(); raise PermissionError(1, 'none') if re.search('CapEff:\\\\s+0+$', s, re.M) and 'NoNewPrivs:\\t1' in s else 0"),
    ],
)  # fmt: skip
def test_a_program_is_held_by_the_same_boundary(
    arena: Arena, listener: Listener, tmp_path: Path, what: str, python: str
) -> None:
    code = """
    def attempt():
        import subprocess
        python = V["python"].replace("SUPERVISOR", str(os.getppid()))
        done = subprocess.run([V["program"], "-I", "-S", "-c", python], capture_output=True, text=True)
        return [done.returncode, "PermissionError" in done.stderr, done.stderr[-300:]]
    """
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            outside = tmp_path / "outside"
            text = python.format(port=listener.port, victim=victim.pid, outside=str(outside), supervisor="SUPERVISOR")
            held = arena.confined(
                code, allow={"run": sys.executable, "read": "/proc"}, program=sys.executable, python=text
            )
            assert held.value is not None, held
            assert held.value[:2] == [1, True], held.value
            assert victim.poll() is None
            assert listener.connections == 0
            assert not outside.exists()
        finally:
            victim.kill()


def test_a_program_connects_where_the_worker_may(arena: Arena, listener: Listener) -> None:
    code = RUN
    python = f"import socket; s = socket.create_connection(('127.0.0.1', {listener.port})); print(s.recv(5).decode())"
    allow = {"run": sys.executable, "net": f"127.0.0.1:{listener.port}"}
    command = [sys.executable, "-I", "-S", "-c", python]
    assert arena.confined(code, allow=allow, command=command).value == "hello\n"


def test_the_workers_own_programs_can_be_ended_by_it(arena: Arena) -> None:
    code = """
    def attempt():
        import subprocess
        process = subprocess.Popen(["sleep", "60"])
        process.terminate()
        return process.wait()
    """
    assert arena.confined(code, allow={"run": "sleep"}).value == -signal.SIGTERM
    assert arena.confined(code, allow={"run": "sleep"}, missing=["landlock-scope"], limits={"time": 3}).errno in (
        "EPERM",
        "NO OUTCOME",
    )


def _sleepers(mark: str) -> list[str]:
    return subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("end", ["exit", "killed supervisor"])
def test_no_program_outlives_the_worker(arena: Arena, tmp_path: Path, end: str) -> None:
    mark = f"6{os.getpid() % 10000:04d}.{'1' if end == 'exit' else '2'}"
    script = tmp_path / "spawn.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        f"for _ in range(3):\n    subprocess.Popen(['sh', '-c', 'sleep {mark} & sleep {mark}'])\n"
        f"time.sleep(0.3)\nprint('ready', flush=True)\n{'' if end == 'exit' else 'time.sleep(60)'}\n"
    )
    spec = json.dumps({"script": str(script), "scratch": str(arena.scratch), "allow": {"run": "sh,sleep"}})
    with subprocess.Popen([sys.executable, str(CONFINE), spec], stdout=subprocess.PIPE, env=arena.env) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"ready\n"
        if end != "exit":
            assert len(_sleepers(mark)) >= 6
            supervisor.kill()
        supervisor.wait(20)
    wait_for(lambda: not _sleepers(mark))


LISTEN = """
def attempt():
    with socket.socket(V.get("family", socket.AF_INET)) as s:
        if V["address"]:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((V["address"], V["port"]))
        s.listen(4)
        with open("ready", "w"):
            pass
        s.settimeout(10)
        peer, _ = s.accept()
        return peer.recv(5).decode()
"""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_granted_address_is_listened_on(arena: Arena) -> None:
    port = _free_port()

    def call() -> None:
        wait_for(lambda: (arena.scratch / "ready").exists(), 30)
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(b"hello")

    thread = threading.Thread(target=call)
    thread.start()
    found = arena.confined(LISTEN, allow={"listen": f"127.0.0.1:{port}"}, address="127.0.0.1", port=port)
    thread.join()
    assert found.value == "hello", found


@pytest.mark.parametrize(
    "kind", ["other port", "other address", "every address", "mapped", "no bind", "any port", "net only"]
)
def test_listening_elsewhere_is_refused(arena: Arena, kind: str) -> None:
    code = LISTEN.replace(
        "        s.settimeout(10)\n        peer, _ = s.accept()\n        return peer.recv(5).decode()\n",
        "        return 'listens'\n",
    )
    port, granted = _free_port(), _free_port()
    where: dict[str, object] = {"address": "127.0.0.1", "port": port}
    allow = {"listen": f"127.0.0.1:{granted}", "net": "127.0.0.0/8,[::1]"}
    if kind == "other address":
        where |= {"address": "127.0.0.2", "port": granted}
    elif kind == "every address":
        where |= {"address": "0.0.0.0", "port": granted}
    elif kind == "mapped":
        where |= {"address": "::ffff:127.0.0.2", "family": socket.AF_INET6}
    elif kind == "no bind":
        where |= {"address": ""}
    elif kind == "any port":
        where |= {"port": 0}
    elif kind == "net only":
        allow.pop("listen")
    held = arena.refused(code, "EPERM" if kind == "net only" else "EACCES", works="listens", allow=allow, **where)
    assert not (arena.scratch / "ready").exists()
    if kind == "other port":
        assert (
            f'Requires listen access to "127.0.0.1:{port}"; grant it with: --allow-listen=127.0.0.1:{port}'
            in held.stderr
        )
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_port_0_is_a_port_that_the_kernel_chooses_and_no_other(arena: Arena, name: str) -> None:
    code = """
    def attempt():
        found = []
        for where in ((V["name"], 0), (V["name"], V["port"]), ("127.0.0.2", 0), ("0.0.0.0", 0), None):
            with socket.socket() as s:
                try:
                    if where: s.bind(where)
                    s.listen()
                    found.append(s.getsockname()[1] > 0)
                except OSError as error:
                    found.append(errno.errorcode[error.errno])
        return found
    """
    held = arena.confined(code, allow={"listen": "127.0.0.1:0"}, name=name, port=_free_port())
    assert held.value == [True, "EACCES", "EACCES", "EACCES", "EACCES"], held


def test_a_port_that_another_program_listens_on_is_not_shared_with_the_worker(arena: Arena) -> None:
    code = """
    def attempt():
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(("127.0.0.1", V["port"]))
            s.listen(64)
            for _ in range(64):  # the kernel spreads them
                socket.create_connection(("127.0.0.1", V["port"]))
            return s.accept()[0].close()
    """
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        service.bind(("127.0.0.1", 0))
        service.listen(128)
        target = f"127.0.0.1:{service.getsockname()[1]}"
        port = service.getsockname()[1]
        arena.refused(code, "EPERM", works=None, allow={"listen": target, "net": target}, port=port)
        code = code.replace("            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n", "")
        assert arena.confined(code, allow={"listen": target, "net": target}, port=port).errno == "EADDRINUSE"


def test_a_denied_port_is_not_the_one_that_the_kernel_may_choose(arena: Arena) -> None:
    held = arena.confined(
        LISTEN, allow={"listen": "127.0.0.1:0"}, deny={"listen": "127.0.0.1:0"}, address="127.0.0.1", port=0
    )
    assert held.errno == "EACCES"


def test_a_denied_address_is_not_listened_on(arena: Arena) -> None:
    port = _free_port()
    target = {"listen": f"127.0.0.1:{port}"}
    held = arena.confined(LISTEN, allow=target, deny=target, address="127.0.0.1", port=port)
    assert held.errno == "EACCES"
