"""Names are asked for through two pipes. Whatever a worker does with them is an error of its own, and delays nobody."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from arena import Arena, Listener, in_every_child

from sandboxrun.sandbox.supervisor.supervisor import _QUESTION_BYTES

ALLOW = {"net": "localhost,127.0.0.1"}
PIPES = f"""
import fcntl, struct, threading, time
SOCKETS = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
RIGHTS = lambda fd: [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
questions, answers = (fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{{fd}}"))
MOST = {_QUESTION_BYTES}
def sent_over(way, kind, fd):
    try:
        with socket.socket(socket.AF_UNIX, kind, 0, os.dup(way)) as s:
            return s.sendmsg([b"name 1 localhost"], RIGHTS(fd))
    except OSError as error:
        return errno.errorcode[error.errno]
def ask(name="localhost"):
    try:
        return sorted({{found[4][0] for found in socket.getaddrinfo(name, 80, socket.AF_INET)}})
    except socket.gaierror as error:
        return next(n for n in ("EAI_NONAME", "EAI_SYSTEM", "EAI_AGAIN") if getattr(socket, n) == error.errno)
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
"""


def asking(body: str) -> str:
    return PIPES + "def attempt():\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"


# --- no descriptor passes


@in_every_child
def test_no_descriptor_can_be_sent_to_the_supervisor(arena: Arena) -> None:
    code = asking("""
        found = [sent_over(fd, kind, 0) for fd in (questions, answers) for kind in SOCKETS]
        ours, theirs = socket.socketpair()
        return [ours.sendmsg([b"x"], RIGHTS(0)), *found]
    """)
    assert arena.confined(code).value == [1] + ["ENOTSOCK"] * 6


def test_closing_a_socket_that_lingers_is_the_workers_own_wait(arena: Arena) -> None:
    # With data that its peer does not read, close(2) waits as long as SO_LINGER says. Whoever gets the last descriptor waits.
    code = asking("""
        def lingering(seconds):
            s = socket.create_connection(("127.0.0.1", V["port"]))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
            s.setblocking(False)
            try:
                while True:
                    s.send(bytes(1 << 20))
            except BlockingIOError:
                return s
        s, begun = lingering(1), time.monotonic()
        s.close()
        waited = time.monotonic() - begun >= 1
        s = lingering(600)
        for fd in (questions, answers):
            for kind in SOCKETS:
                sent_over(fd, kind, s.fileno())
        threading.Thread(target=s.close, daemon=True).start()
        return [waited, ask()]
    """)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(4)
        found = arena.confined(code, allow=ALLOW, port=silent.getsockname()[1])
    assert found.value == [True, ["127.0.0.1"]], found


UNPRIVILEGED = ["setpriv", "--bounding-set=-sys_resource,-sys_admin"] if os.geteuid() == 0 else []
SEND_ONE = """
import resource, socket, struct
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
ours, theirs = socket.socketpair()
socket.send_fds(ours, [b"x"], [0])
"""


@contextmanager
def many_descriptors_under_way(count: int) -> Iterator[None]:
    """Sent by this user, and not received yet: counted for all of the user's processes (unix(7), ETOOMANYREFS)."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before[0] > count or os.geteuid() == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(-(-count // 250)):
            socket.send_fds(ours, [b"x"], [0] * 250)
        yield


def test_a_worker_starts_while_too_many_of_its_users_descriptors_are_under_way(arena: Arena) -> None:
    send_one = [*UNPRIVILEGED, sys.executable, "-c", SEND_ONE]
    with many_descriptors_under_way(500):
        assert "Too many references" in subprocess.run(send_one, capture_output=True, text=True).stderr
        found = arena.confined(
            asking("return ask()"), allow=ALLOW, files=256, limits={"files": 128}, under=UNPRIVILEGED
        )
    assert found.value == ["127.0.0.1"], found


# --- what is written to them, and how they are closed

JUNK = {
    "words": "[b'name', b'name x y', b'name 1', b'name 99999999999999999999999 a', b'name  localhost', b'go', b'plan']",
    "bytes that are no text": "[b'name 77 ' + bytes([255]) * 900, bytes(2000), os.urandom(2000)]",
    "separators": "[b'name 5 local\\0host', b'\\0' * 50, b'\\n' * 50, b'name 6 a\\nb', b'name 7 a\\nok\\n127.0.0.1']",
    "more than is read": "[b'name 8 ' + b'a' * MOST, b'x' * 70000, b'name 9 localhost' + b' ' * 4096]",
    "the child's own": "[b'ready 0', b'ready 99999', b'ready', b'fail text']",
}


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("mode", ["packets", "a stream"])
def test_garbage_is_nobodys_question(arena: Arena, kind: str, mode: str) -> None:
    # In a stream, a question that comes close behind garbage may be taken for its end.
    code = asking(f"""
        import termios
        if V["mode"] == "a stream":
            fcntl.fcntl(questions, fcntl.F_SETFL, 0)
        for junk in {JUNK[kind]}:
            os.write(questions, junk)
        while fcntl.ioctl(questions, termios.FIONREAD, bytes(4)) != bytes(4):
            time.sleep(0.001)
        return [ask(), ask("not.listed"), ask("-bad")]
    """)
    found = arena.confined(code, allow=ALLOW, mode=mode)
    assert found.value == [["127.0.0.1"], "EACCES", "EAI_NONAME"], found
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "host", ["a\nb", "a\nok\n127.0.0.1", "localhost\n", "local host", "x" * 5000, "\udcff", "\u20ac"]
)
def test_a_name_that_could_be_taken_for_more_than_one_is_none(arena: Arena, host: str) -> None:
    code = asking("""
        try:
            return [ask(V["host"]), ask()]
        except (ValueError, UnicodeError):
            return ["EAI_NONAME", ask()]
    """)
    found = arena.confined(code, allow=ALLOW, host=host).value
    assert found[0] in ("EAI_NONAME", "EACCES")
    assert found[1] == ["127.0.0.1"]


def test_answers_that_nobody_reads_are_dropped_and_delay_nobody(arena: Arena, listener: Listener) -> None:
    code = asking("""
        for number in range(5000):  # more answers than the pipe takes
            os.write(questions, b"name %d localhost" % number)
        with socket.create_connection(("127.0.0.1", V["port"])) as s:
            greeting = s.recv(5).decode()
        found = os.read(answers, 1 << 20).split(b"\\0")
        while found[-2].split(b"\\n")[0] != b"6000":  # until a question is answered
            os.write(questions, b"name 6000 localhost")
            found = os.read(answers, 1 << 20).split(b"\\0")
        whole = {answer.partition(b"\\n")[2] for answer in found[:-1]}
        return [greeting, len(whole), found[-1] == b"", ask()]
    """)
    found = arena.confined(code, allow=ALLOW, port=listener.port)
    assert found.value == ["hello", 1, True, ["127.0.0.1"]], found


FLOODS = {
    "questions": "b'name 7 localhost'",
    "names that are refused": "b'name 7 other.example'",
    "garbage": "os.urandom(4096)",
    "single bytes": "b'x'",
    "a megabyte": "bytes(1 << 20)",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_questions_does_not_hold_up_the_time_limit(arena: Arena, flood: str) -> None:
    code = asking(f"""
        def flood():
            while True:
                os.write(questions, {FLOODS[flood]})
        for _ in range(4):
            threading.Thread(target=flood, daemon=True).start()
        while True:
            time.sleep(1)
    """)
    done = arena.confined(code, allow=ALLOW, limits={"time": 1})
    assert done.code == 128 + signal.SIGTERM, done
    assert "Traceback" not in done.stderr


CLOSED = {
    "questions": ("os.close(questions)", "EAI_SYSTEM"),
    "answers": ("os.close(answers)", "EAI_SYSTEM"),
    "both": ("os.close(questions); os.close(answers)", "EAI_SYSTEM"),
    "all, and others take their numbers": ("os.closerange(3, 64); held = [os.pipe() for _ in range(9)]", "EAI_SYSTEM"),
    "all, and sockets take their numbers": ("os.closerange(3, 64); held = [socket.socket() for _ in range(9)]", "EAI_SYSTEM"),
    "standard input instead": ("os.dup2(0, questions); os.dup2(0, answers)", "EAI_SYSTEM"),
    "one for the other": ("os.dup2(questions, answers)", "EAI_SYSTEM"),
    "exchanged": ("a = os.dup(answers); os.dup2(questions, answers); os.dup2(a, questions)", "EAI_SYSTEM"),
    "over the standard streams": ("os.dup2(answers, 0); os.dup2(questions, 2); print('x' * 9999, file=sys.stderr)", ["127.0.0.1"]),
    "opened anew, for both": ("held = [os.open(f'/proc/self/fd/{fd}', os.O_RDWR) for fd in (questions, answers)]", ["127.0.0.1"]),
    "made small": ("fcntl.fcntl(questions, 1031, 4096); fcntl.fcntl(answers, 1031, 4096)", ["127.0.0.1"]),
    "made large": ("fcntl.fcntl(questions, 1031, 1 << 20); fcntl.fcntl(answers, 1031, 1 << 20)", ["127.0.0.1"]),
}  # fmt: skip


@pytest.mark.parametrize("way", CLOSED)
def test_pipes_that_are_closed_or_taken_for_others_are_an_error_of_the_asker(
    arena: Arena, listener: Listener, way: str
) -> None:
    code = asking(f"""
        {CLOSED[way][0]}
        found = [ask(), ask()]
        with socket.create_connection(("127.0.0.1", V["port"])) as s:
            return [*found, s.recv(5).decode()]
    """)
    expected: Any = CLOSED[way][1]
    found = arena.confined(code, allow=ALLOW, port=listener.port)
    assert found.value == [expected, expected, "hello"], found
    assert found.code == 0


def test_a_closed_pipe_does_not_keep_the_supervisor_busy(arena: Arena) -> None:
    code = asking("os.close(questions)\ntime.sleep(3)\nreturn ask()")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert arena.confined(code).value == "EAI_SYSTEM"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # A loop would take all of the three seconds.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_worker_that_reads_its_own_questions_goes_without_answers_and_others_are_served(
    arena: Arena, listener: Listener
) -> None:
    code = asking("""
        taken = os.open(f"/proc/self/fd/{questions}", os.O_RDONLY | os.O_NONBLOCK)
        def take():
            while True:
                try:
                    os.read(taken, 4096)
                except BlockingIOError:
                    pass
        threading.Thread(target=take, daemon=True).start()
        for number in range(2000):
            os.write(questions, b"name 1 localhost")
        with socket.create_connection(("127.0.0.1", V["port"])) as s:
            os.write(1, b"OUTCOME " + json.dumps({"value": s.recv(5).decode()}).encode() + b"\\n")
        os._exit(0)
    """)
    assert arena.confined(code, allow=ALLOW, port=listener.port).value == "hello"


# --- many askers


def test_many_threads_get_each_the_answer_to_its_own_question(arena: Arena) -> None:
    code = asking("""
        found = []
        def run(number):
            for _ in range(20):
                found.append(ask("localhost") if number % 2 else ask(f"n{number}.not.listed"))
        threads = [threading.Thread(target=run, args=(number,)) for number in range(50)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        return [found.count(["127.0.0.1"]), found.count("EACCES")]
    """)
    found = arena.confined(code, allow=ALLOW, limits={"threads": 100})
    assert found.value == [500, 500], found


def test_processes_get_each_the_answer_to_its_own_question(arena: Arena) -> None:
    code = asking("""
        pids = []
        for number in range(8):
            pids.append(os.fork())
            if pids[-1] == 0:
                found = [ask() if number % 2 else ask(f"n{number}.not.listed") for _ in range(50)]
                os._exit(found != [["127.0.0.1"] if number % 2 else "EACCES"] * 50)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] + [ask()]
    """)
    found = arena.confined(code, allow=ALLOW | {"run": "true"})
    assert found.value == [0] * 8 + [["127.0.0.1"]], found


def test_a_signal_handlers_own_error_passes_through_a_look_up(arena: Arena) -> None:
    code = asking("""
        import signal
        def ring(*_): raise TimeoutError("rings")
        signal.signal(signal.SIGALRM, ring)
        ask()  # imports what it needs, which may swallow an error
        rung = 0
        while rung < 100:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
                while True:
                    socket.getaddrinfo("localhost", 80)
            except TimeoutError:
                rung += 1
        return ask()
    """)
    assert arena.confined(code, allow=ALLOW).value == ["127.0.0.1"]
