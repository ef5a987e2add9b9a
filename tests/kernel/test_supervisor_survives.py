"""Whatever a worker does, its supervisor lives, answers with errnos, and holds nothing for those who are gone."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from arena import Arena, Listener, full_backlog, wait_for
from attack import counting
from flood import CALLS, flooding, trapped, worker

from sandboxrun.sandbox.supervisor.handlers.connect import DESCRIPTORS_KEPT, PENDING_MAX

# --- connects that hang


def test_hundreds_of_hanging_connects_delay_nobody_and_leave_nothing(arena: Arena, listener: Listener) -> None:
    code = worker("""
        good()  # what is opened on first use is open now
        say("begun")
        told("go")
        hang(V["many"])
        told("all hang")
        found = [good(100), errors[:]]  # those who are served come to their end while the others hang
        hang(V["rest"])
        told("no more")
        found.append(refused(socket.socket()))
        with socket.socket(2, 1 | socket.SOCK_NONBLOCK) as s:  # which nobody has to wait for
            found.append(refused(s))
        let_go()
        found.append(len(errors))
        say("gone")
        told("counted")
        return [*found, good(10)]
    """)
    allow, limits = {"net": "127.0.0.1"}, {"threads": 0}
    with full_backlog() as hanging:
        variables = {"hanging": hanging, "port": listener.port, "many": 400, "rest": PENDING_MAX - 400}
        with arena.running(code, allow=allow, limits=limits, variables=variables) as running:
            assert running.line() == "begun"
            before = running.descriptors()
            running.tell("go")
            wait_for(lambda: running.descriptors() == before + 400)
            running.tell("all hang")
            wait_for(lambda: running.descriptors() == before + PENDING_MAX)
            running.tell("no more")
            assert running.line() == "gone"
            wait_for(lambda: running.descriptors() == before)
            running.tell("counted")
            found = running.end()
    assert found.value == [True, [], "EAGAIN", "EINPROGRESS", PENDING_MAX, True], found


def test_connects_of_processes_that_are_killed_leave_nothing(arena: Arena, listener: Listener) -> None:
    code = worker("""
        good()
        say("begun")
        told("go")
        pids = []
        for _ in range(5):
            pids.append(os.fork())
            if pids[-1] == 0:
                hang(20)
                time.sleep(600)
        told("all hang")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        say("gone")
        told("counted")
        return good(10)
    """)
    allow = {"net": "127.0.0.1", "run": "true"}
    with full_backlog() as hanging:
        variables = {"hanging": hanging, "port": listener.port}
        with arena.running(code, allow=allow, variables=variables) as running:
            assert running.line() == "begun"
            before = running.descriptors()
            running.tell("go")
            wait_for(lambda: running.descriptors() == before + 100)
            running.tell("all hang")
            assert running.line() == "gone"
            wait_for(lambda: running.descriptors() == before)
            running.tell("counted")
            assert running.end().value is True


@pytest.mark.parametrize("many", [False, True], ids=["one process", "with programs"])
def test_a_supervisor_with_few_descriptors_keeps_some_for_itself(arena: Arena, listener: Listener, many: bool) -> None:
    code = worker("""
        hang(60)
        told("some hang")
        while len(errors) < 40:  # which 20 hang is the scheduler's choice
            time.sleep(0.01)
        # More than a second, in which the supervisor looks after the scratch folder.
        time.sleep(1.5)
        found = [sorted(set(errors)), refused(socket.socket())]
        with socket.socket(2, 1 | socket.SOCK_NONBLOCK) as s:
            found.append(refused(s))
        found.append(socket.gethostbyname("localhost"))
        found.append(60 - len(errors))
        let_go()
        return [*found, good(10)]
    """)
    allow = {"net": "127.0.0.1,localhost"} | ({"run": "true"} if many else {})
    with full_backlog() as hanging:
        variables = {"hanging": hanging, "port": listener.port}
        with arena.running(code, allow=allow, files=DESCRIPTORS_KEPT + 20, variables=variables) as running:
            wait_for(lambda: running.descriptors() > 20)
            running.tell("some hang")
            found = running.end()
    assert found.value == [["EAGAIN"], "EAGAIN", "EINPROGRESS", "127.0.0.1", 20, True], found
    assert found.stderr == ""


# --- floods of every trapped call, with arguments that no program has

GRANTS = [{}, {"listen": "127.0.0.1:1"}, {"run": "true"}]
IDS = ["one process", "listening", "with programs"]


@pytest.mark.parametrize("grants", GRANTS, ids=IDS)
def test_a_flood_of_wild_arguments_gets_errnos_and_nothing_else(
    arena: Arena, listener: Listener, grants: dict[str, str]
) -> None:
    code = flooding("""
        good()
        say("begun")
        told("go")
        results, together = [], threading.Barrier(5)
        def run(number):
            together.wait()
            results.append(flood(number, V["times"]))
            together.wait()  # or a clone(2) of the others would succeed, and run on a wild stack
        threading.Thread(target=flicker, daemon=True).start()
        for number in range(4):
            threading.Thread(target=run, args=(number,)).start()
        together.wait()
        together.wait()
        say("gone")
        told("counted")
        found = {name: sorted(set().union(*(r[name] for r in results))) for name in V["names"]}
        return [found, good(10)]
    """)
    names = trapped(grants)
    variables = {"port": listener.port, "calls": CALLS, "names": names, "times": 120}
    allow = {"net": f"127.0.0.1:{listener.port}"} | grants
    with arena.running(code, allow=allow, limits={"threads": 6}, variables=variables) as running:
        assert running.line() == "begun"
        before = running.descriptors()
        running.tell("go")
        assert running.line() == "gone"
        wait_for(lambda: running.descriptors() == before)
        running.tell("counted")
        done = running.end()
    assert done.errno is None, done
    found, good = done.value
    errnos = {
        "EFAULT",
        "EBADF",
        "EINVAL",
        "EACCES",
        "EPERM",
        "ENOTSOCK",
        "ENOENT",
        "ENAMETOOLONG",
        "ENOTDIR",
        "EISCONN",
    }
    for name in names:
        processes = name in ("clone", "fork", "vfork")
        assert set(found[name]) <= ({"EAGAIN"} if processes else errnos | {"done"} if name == "connect" else errnos), (
            name
        )
        assert processes or "EFAULT" in found[name] or name in ("listen", "fchmod")
    assert good is True
    assert done.code == 0
    assert "Traceback" not in done.stderr and "supervised" not in done.stderr


@pytest.mark.parametrize("grants", GRANTS, ids=IDS)
@pytest.mark.parametrize("way", ["killed", "ends"])
def test_a_worker_that_dies_in_a_flood_ends_as_always(
    arena: Arena, listener: Listener, way: str, grants: dict[str, str]
) -> None:
    code = flooding("""
        for number in range(8):
            threading.Thread(target=flood, args=(number, 1 << 30), daemon=True).start()
        time.sleep(V["seconds"])
        os.kill(os.getpid(), signal.SIGKILL) if V["way"] == "killed" else os._exit(7)
    """)
    names = [name for name in trapped(grants) if name not in ("clone", "fork", "vfork")]
    allow = {"net": f"127.0.0.1:{listener.port}"} | grants
    for seconds in (0.02, 0.1):
        variables = {"port": listener.port, "calls": CALLS, "names": names, "way": way, "seconds": seconds}
        done = arena.confined(code, allow=allow, **variables)
        assert done.code == (128 + signal.SIGKILL if way == "killed" else 7)
        assert "Traceback" not in done.stderr and "supervised" not in done.stderr


def test_processes_that_die_in_a_flood_leave_nothing_and_others_are_served(arena: Arena, listener: Listener) -> None:
    code = flooding("""
        good()
        say("begun")
        told("go")
        for turn in range(25):
            pids = []
            for number in range(3):
                pids.append(os.fork())
                if pids[-1] == 0:
                    flood(number, 1 << 30)
            time.sleep(0.001 * turn)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)
        say("gone")
        told("counted")
        return good(10)
    """)
    names = [name for name in trapped({"run": ""}) if name not in ("clone", "fork", "vfork")]
    variables = {"port": listener.port, "calls": CALLS, "names": names}
    allow = {"net": f"127.0.0.1:{listener.port}", "run": "true"}
    with arena.running(code, allow=allow, variables=variables) as running:
        assert running.line() == "begun"
        before = running.descriptors()
        running.tell("go")
        assert running.line() == "gone"
        wait_for(lambda: running.descriptors() == before)
        running.tell("counted")
        done = running.end()
    assert (done.value, done.code) == (True, 0), done
    assert "Traceback" not in done.stderr


def test_a_call_whose_process_is_gone_when_it_is_taken_is_nobodys(arena: Arena, listener: Listener) -> None:
    # The supervisor stands still while the call is made, and its process killed.
    code = worker("""
        good()
        pid = os.fork()
        if pid == 0:
            time.sleep(0.05)
            libc.connect(socket.socket().detach(), inet(V["denied"]), 16)
            os._exit(0)
        say(pid)
        told("called")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return good(5)
    """)
    with counting() as denied:
        variables = {"port": listener.port, "denied": denied.port}
        allow = {"net": f"127.0.0.1:{listener.port}", "run": "true"}
        with arena.running(code, allow=allow, variables=variables) as running:
            pid = int(running.line())
            running.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: _in_connect(pid))
            running.tell("called")
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
            running.process.send_signal(signal.SIGCONT)
            done = running.end()
        assert (done.value, done.code) == (True, 0), done
        assert denied.arrived() == 0


def _in_connect(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(CALLS["connect"])
    return False
