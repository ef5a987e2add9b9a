"""Workers that do their best not to end, and grants that would outlast them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import full_backlog, wait_for
from runner import Runner

Local = Callable[..., Path]

TOGGLE = """
import ctypes, fcntl, os, signal, socket, struct, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
libc = ctypes.CDLL(None)
address = struct.pack("=HH4s8x", 2, socket.htons({port}), bytes([127, 0, 0, 1]))
started = threading.Event()  # else the race could be lost while threads are still to be started, which waits with it
def toggle(s):
    started.wait()
    while True:
        fcntl.fcntl(s, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(s, fcntl.F_SETFL, os.O_RDWR)
def connect(s):
    started.wait()
    while True:
        libc.connect(s.fileno(), address, 16)
for _ in range(2):
    s = socket.socket()
    for target in (toggle, toggle, connect):
        threading.Thread(target=target, args=(s,), daemon=True).start()
print("ready", flush=True)
started.set()
time.sleep(600)
"""

FLOOD = """
import os, signal, socket, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def flood():
    while True:
        os.write(2, b"x" * 4096)
threading.Thread(target=flood, daemon=True).start()
print("ready", flush=True)
port = 0
while True:
    port = port % 60000 + 1
    socket.socket().connect_ex(("192.0.2.1", port))
"""


def test_clearing_o_nonblock_while_the_supervisor_connects_does_not_save_a_worker(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    with full_backlog() as port:
        local(TOGGLE.format(port=port), allowNet=f"127.0.0.1:{port}")
        with run.start("t", "1") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            wait_for(lambda: r.hget("t:1:h", "pid"))
            # Long enough for the race to be lost, which was seen within a tenth of this.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            r.hdel("t:1:h", "pid")
            assert process.wait(20) == 128 + 9


def test_a_reader_of_our_messages_that_stalls_does_not_save_a_worker(r: redis.Redis, run: Runner, local: Local) -> None:
    local(FLOOD)
    with run.start("t", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"  # nobody reads standard error
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        r.hdel("t:1:h", "pid")
        assert process.wait(20) == 128 + 9


def test_what_is_code_cannot_be_granted_for_writing(r: redis.Redis, run: Runner, local: Local) -> None:
    folder = local("print('ran')")
    for path in (
        os.path.dirname(sys.executable),
        sys.prefix,
        "/usr/bin",
        "/etc",
        "/",
        str(folder),
        str(run.home),
        str(run.policy.parent),
    ):
        r.hset("t:1:h", "allowWrite", path)
        run("cache")  # makes the folders that the home is protected for
        done = run("t", "1", "--yes")
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
    assert "is a symlink in a folder that the worker can write" in done.err


@pytest.mark.parametrize(
    "code",
    [
        "os.mkdir('h', 0o300)\nopen('h/f', 'w').close()\n",
        "os.mkdir('h')\nopen('h/f', 'w').close()\nos.mkdir('h/d', 0)\n",
        "[(os.mkdir('x' * 200), os.chdir('x' * 200)) for _ in range(40)]\n",
    ],
)
def test_a_scratch_folder_that_hides_what_it_holds_is_removed(
    r: redis.Redis, run: Runner, local: Local, code: str
) -> None:
    local("import os\n" + code + "print('made')\n")
    done = run("t", "1")
    assert (done.code, done.out) == (0, "made\n"), done.err
    assert list((run.home / ".cache/sandboxrun/scratch").iterdir()) == []


def test_removed_files_that_are_still_open_count_as_scratch(r: redis.Redis, run: Runner, local: Local) -> None:
    local(
        "import os, time\nfiles = []\nfor _ in range(3):\n    f = open('f', 'wb')\n    os.unlink('f')\n"
        "    os.posix_fallocate(f.fileno(), 0, 100 << 20)\n    files.append(f)\ntime.sleep(30)\n"
    )
    done = run("t", "1")
    assert done.code == 128 + 15
    assert "the scratch folder has reached its limit of 256M" in done.err


def test_long_names_of_fields_are_not_read_into_memory(r: redis.Redis, run: Runner, local: Local) -> None:
    local("print('ran')")
    r.hset("t:1:h", "x" * (70 << 20), "y")
    done = run("t", "1")
    assert done.code == 78
    assert "takes more than 64 MiB" in done.err


def test_a_worker_whose_first_thread_has_ended_is_still_running(r: redis.Redis, run: Runner, local: Local) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the number of exit(2) is x86-64's")
    local(
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('ready', flush=True)\nctypes.CDLL(None).syscall(60, 0)\n"
    )
    with run.start("t", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        pid = int(r.hget("t:1:h", "pid"))
        wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert run("t", "1").code == 73
        r.hdel("t:1:h", "pid")
        assert process.wait(20) == 128 + 15


def test_a_shell_that_allows_few_files_does_not_make_connects_fewer(r: redis.Redis, run: Runner, local: Local) -> None:
    with full_backlog() as port:
        local(
            "import collections, resource, socket, struct, threading\n"
            "found = collections.Counter()\n"
            "def hang():\n"
            "    s = socket.socket()\n"
            "    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('@ll', 1, 0))\n"
            f"    try: s.connect(('127.0.0.1', {port}))\n"
            "    except OSError as error: found[error.strerror] += 1\n"
            "threads = [threading.Thread(target=hang) for _ in range(150)]\n"
            "for thread in threads: thread.start()\n"
            "for thread in threads: thread.join()\n"
            "print(dict(found), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n",
            allowNet="127.0.0.1",
            limitFiles="500",
        )
        command = ["sh", "-c", 'ulimit -S -n 100; exec "$@"', "sh", *run.command("t", "1", "--quiet")]
        done = subprocess.run(command, env=run.env, cwd=run.home, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "{'Operation now in progress': 150} 500\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_worker_that_prints_to_nobody_is_told(r: redis.Redis, run: Runner, local: Local, stream: str) -> None:
    local(
        f"import sys\nprint('ready', flush=True, file=sys.{stream})\nwhile True: print('x' * 1000, file=sys.{stream})\n"
    )
    with run.start("t", "1", "--quiet") as process:
        reader = process.stdout if stream == "stdout" else process.stderr
        assert reader is not None
        assert reader.readline() == b"ready\n"
        reader.close()
        assert process.wait(20) in (1, 120)  # BrokenPipeError; 120 where it came once more at Python's end
