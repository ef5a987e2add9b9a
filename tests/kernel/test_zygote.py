"""Children that are forked from a zygote: they equal spawned ones, know nothing of each other, and end with the agent."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import wait_for
from small_agent import SmallAgent, small_agent

CANARY = "CANARY-8e1d"
# What /proc tells of a child that waits for its plan.
LOOKS = """
def looks(pid):
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    stat = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    names = "Umask Uid Gid Groups Threads SigQ SigPnd ShdPnd SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp"
    files = ("environ", "cgroup", "oom_score_adj", "limits", "mountinfo", "loginuid", "comm", "coredump_filter")
    return {
        **{name: status.get(name, "").strip() for name in names.split() if name != "SigQ"},
        **{name: open(f"/proc/{pid}/{name}").read() for name in files if os.path.exists(f"/proc/{pid}/{name}")},
        "parent": int(stat[1]) == os.getpid(),
        "leads its group and session": [int(stat[n]) == pid for n in (2, 3)],
        "terminal": stat[4],
        "nice and scheduling": [stat[n] for n in (16, 37, 38)],
        "folder": os.readlink(f"/proc/{pid}/cwd"),
        "program": os.readlink(f"/proc/{pid}/exe"),
        "descriptors": sorted(os.readlink(f"/proc/{pid}/fd/{fd}").partition("[")[0] for fd in os.listdir(f"/proc/{pid}/fd")),
        "access": sorted(
            line.split()[1][-7:] for fd in os.listdir(f"/proc/{pid}/fdinfo") for line in open(f"/proc/{pid}/fdinfo/{fd}") if line.startswith("flags")
        ),
    }
def waits(spawned):
    # It has closed the agent's ends of its pipes, and reads its answers.
    while descriptors(spawned.pid) != 6 or open(f"/proc/{spawned.pid}/wchan").read() not in ("0", "pipe_read", "anon_pipe_read"):
        time.sleep(0.002)
    return spawned
import time
"""  # fmt: skip


@pytest.fixture
def agent() -> Iterator[SmallAgent]:
    with small_agent() as made:
        yield made


def spec(folder: Path, code: str, **more: Any) -> dict[str, Any]:
    """Of a worker, for confine.py: a folder of its own, and what its script says goes to the file `said` there."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, mode=0o700)
    script = folder / "script.py"
    script.write_text(
        f"import json, os\ndef say(value):\n    with open('said', 'w') as file: json.dump(value, file)\n{code}\n"
    )
    return {"script": str(script), "scratch": str(scratch), **more}


def said(made: dict[str, Any]) -> Any:
    return json.loads(Path(made["scratch"], "said").read_text())


@contextlib.contextmanager
def pidfds(*pids: int) -> Iterator[list[int]]:
    found = [os.pidfd_open(pid) for pid in pids]
    try:
        yield found
    finally:
        for fd in found:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)


def has_ended(pidfd: int, seconds: float = 10) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


# ---- as a spawned one


def test_a_forked_child_looks_like_a_spawned_one(agent: SmallAgent) -> None:
    agent(LOOKS)
    spawned, forked = agent(
        'result = [looks(waits(made).pid) for made in (Spawned("a:1:h", warm=True), zygote.fork("a:1:h"))]'
    )
    assert forked == spawned
    assert forked["environ"] == "LANG=C.UTF-8\0"


def test_ps_shows_the_key_of_a_forked_child(agent: SmallAgent) -> None:
    key = "a" * 64 + ":" + "b" * 128 + ":h"  # the longest one
    pids = agent(
        LOOKS + f'result = [waits(zygote.fork(key)).pid for key in ("a:1:h", {key!r}, "c:1:h")] + [zygote.pid]'
    )
    words = [Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0") for pid in pids]
    assert [each[-1].decode() for each in words] == ["a:1:h", key, "c:1:h", "zygote"]
    assert len({tuple(each[:-1]) for each in words}) == 1


def test_the_zygote_has_three_descriptors_and_an_empty_environment(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with small_agent({**os.environ, "OPERATORS_TOKEN": CANARY}) as agent:
            pid = agent("end(zygote.fork('a:1:h'))\nresult = zygote.pid")
            assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
            assert Path(f"/proc/{pid}/environ").read_bytes() == b"LANG=C.UTF-8\0"
            assert os.listdir(f"/proc/{pid}/task") == [str(pid)]


# ---- nothing of another


def holds(pid: int, *texts: str) -> list[bool]:
    """Whether each text is in the memory of a process."""
    found = [False] * len(texts)
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in maps:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if line.split()[1].startswith("r") and "[v" not in line:  # vvar cannot be read
                file.seek(start)
                data = file.read(end - start) or b""
                found = [known or text.encode() in data for known, text in zip(found, texts, strict=True)]
    return found


def test_no_secret_is_in_the_memory_of_the_zygote_or_of_the_next_child(tmp_path: Path) -> None:
    mine = spec(tmp_path / "a", f"found = '{CANARY[:7]}' + '{CANARY[7:]}'\nsay(1)\nimport time; time.sleep(600)")
    with small_agent({**os.environ, "OPERATORS_TOKEN": CANARY}) as agent:
        running, waiting, zygote = agent(
            f"first = zygote.fork('a:1:h')\nstart(first, {mine})\nimport time\n"
            f"while not os.path.exists({mine['scratch']!r} + '/said'): time.sleep(0.01)\n"
            "second = zygote.fork('b:1:h')\nresult = [first.pid, second.pid, zygote.pid]"
        )
        others = (CANARY, str(tmp_path))
        assert holds(agent.process.pid, *others) == [True, True]
        assert holds(running, *others) == [True, True]  # the search finds what is there
        for pid in (waiting, zygote):
            assert holds(pid, "sandboxrun.worker", *others) == [True, False, False]


RANDOM = """
import random, uuid, secrets, ssl, tempfile
say([random.getrandbits(128), uuid.uuid4().hex, secrets.token_hex(16), ssl.RAND_bytes(16).hex(), os.urandom(16).hex(),
     next(tempfile._get_candidate_names())])
"""


def test_two_forked_workers_draw_different_random_numbers(agent: SmallAgent, tmp_path: Path) -> None:
    made = [spec(tmp_path / name, RANDOM) for name in "abc"]
    agent(f"for made in {made}:\n    start(zygote.fork('a:1:h'), made).join()")
    drawn = [said(each) for each in made]
    assert all(len(set(map(str, each))) == len(made) for each in zip(*drawn, strict=True)), drawn


# Signals from a worker, by the pid of the other and by ranges that have it.
ATTACKS = """
import signal, errno
def tried(act, *args):
    try:
        act(*args)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def raw(number, *args):
    if libc.syscall(*map(ctypes.c_long, (number, *args))) < 0:
        raise OSError(ctypes.get_errno(), "syscall")
others = OTHERS
found = {}
for name, pid in others.items():
    found[name] = [tried(os.kill, pid, 0), tried(os.kill, pid, signal.SIGKILL), tried(os.killpg, pid, signal.SIGKILL),
                   tried(open, f"/proc/{pid}/mem"), tried(os.listdir, f"/proc/{pid}/fd"), tried(os.waitpid, pid, 0)]
    if os.uname().machine == "x86_64":
        found[name] += [tried(raw, 434, pid, 0), tried(raw, 234, pid, pid, 9), tried(raw, 101, 16, pid, 0, 0), tried(raw, 310, pid, 0, 0, 0, 0, 0)]
say(found)
"""


@pytest.mark.parametrize("grants", [{}, {"run": "true"}], ids=["alone", "with programs"])
def test_a_worker_reaches_neither_zygote_nor_agent_nor_sibling(
    agent: SmallAgent, tmp_path: Path, grants: dict[str, str]
) -> None:
    sibling, zygote = agent("sibling = zygote.fork('b:1:h')\nresult = [sibling.pid, zygote.pid]")
    others = {"zygote": zygote, "agent": agent.process.pid, "sibling": sibling}
    made = spec(tmp_path / "a", ATTACKS.replace("OTHERS", repr(others)), allow=grants)
    agent(f"start(zygote.fork('a:1:h'), {made}).join()")
    found = said(made)
    for answers in found.values():
        assert answers[:2] == ["EPERM"] * 2
        assert answers[2] in ("EPERM", "ESRCH")  # there may be no such group
        assert answers[3:6] == ["EACCES", "EACCES", "ECHILD"]
        assert answers[6:] in ([], ["ENOSYS", "EPERM", "EPERM", "EPERM"])
    agent("end(sibling, zygote.fork('c:1:h'))\nresult = zygote.pid")
    assert agent("result = zygote.pid") == zygote


# ---- ends


@pytest.mark.parametrize("caller", ["main", "another"])
def test_everything_ends_with_a_killed_agent(agent: SmallAgent, tmp_path: Path, caller: str) -> None:
    made = spec(tmp_path / "a", "say(1)\nimport time; time.sleep(600)")
    fork = "zygote.fork" if caller == "main" else "in_thread(zygote.fork, *args)"
    agent(
        f"def fork(*args): return {fork.replace('zygote.fork', 'zygote.fork(*args)', 1) if caller == 'main' else fork}"
    )
    pids = agent(
        f"running, waiting = fork('a:1:h'), fork('b:1:h')\nstart(running, {made})\n"
        "result = [zygote.pid, waiting.pid, running.pid]"
    )
    wait_for(Path(made["scratch"], "said").exists)
    with pidfds(*pids) as found:
        assert not any(has_ended(fd, 0) for fd in found)
        agent.process.kill()
        assert all(has_ended(fd) for fd in found)


# The agent says the child's pid and is killed, when it has ...
MOMENTS = {
    "asked for a child": "real = module.os.pidfd_open\nmodule.os.pidfd_open = lambda pid: here(pid)",
    "the child's pidfd": "module.pidfd_getfd = lambda pidfd, fd: here(int(next(l for l in open(f'/proc/self/fdinfo/{pidfd}') if l.startswith('Pid')).split()[1]))",
    "taken its descriptors": "module.Spawned.of = lambda pid, pidfd, ours: here(pid)",
}  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_child_that_is_being_forked_ends_with_a_killed_agent(agent: SmallAgent, moment: str) -> None:
    agent(
        "import sandboxrun.sandbox.supervisor.zygote as module, time\n"
        "end(zygote.fork('b:1:h'))\nread, write = os.pipe()\n"
        "def here(pid):\n    os.write(write, str(pid).encode())\n    time.sleep(600)\n"
        f"{MOMENTS[moment]}\nthreading.Thread(target=zygote.fork, args=['a:1:h'], daemon=True).start()"
    )
    child = agent("result = int(os.read(read, 99))")
    with pidfds(child) as (pidfd,):
        agent.process.kill()
        assert has_ended(pidfd)


def test_a_child_outlives_the_thread_that_forked_it(agent: SmallAgent, tmp_path: Path) -> None:
    made = spec(tmp_path / "a", "say(os.getppid())")
    waiting = agent(
        "waiting = in_thread(zygote.fork, 'a:1:h')\nend(in_thread(zygote.fork, 'b:1:h'))\nresult = waiting.pid"
    )
    with pidfds(waiting) as (pidfd,):
        assert not has_ended(pidfd, 0.2)
    agent("end(waiting)")
    agent(f"start(in_thread(zygote.fork, 'a:1:h'), {made}).join()")
    assert said(made) == agent.process.pid


def test_a_killed_zygote_is_replaced_and_its_children_live_on(agent: SmallAgent, tmp_path: Path) -> None:
    made = spec(tmp_path / "a", "say('ran')")
    first, second, gone = agent(
        "waiting = zygote.fork('a:1:h')\nfirst = zygote.pid\nos.kill(first, 9)\nend(zygote.fork('b:1:h'))\n"
        "result = [first, zygote.pid, is_gone(first)]"
    )
    assert (first != second, gone) == (True, True)
    agent(f"start(waiting, {made}).join()")
    assert said(made) == "ran"


def test_a_closed_zygote_is_gone_and_its_children_live_on(agent: SmallAgent, tmp_path: Path) -> None:
    made = spec(tmp_path / "a", "say('ran')")
    assert agent(
        "waiting = zygote.fork('a:1:h')\npid = zygote.pid\nzygote.close()\nresult = [is_gone(pid), zygote.pid]"
    ) == [
        True,
        None,
    ]
    agent(f"start(waiting, {made}).join()")
    assert said(made) == "ran"
    assert "closed" in agent("try: zygote.fork('b:1:h')\nexcept OSError as error: result = str(error)")


def test_a_flood_of_forks_from_many_threads_leaves_nothing(agent: SmallAgent) -> None:
    pids, before, after, gone, left = agent("""
        end(zygote.fork("a:1:h"))
        before, pids = descriptors(), []
        def some():
            for number in range(15):
                made = zygote.fork("a:1:h")
                pids.append(made.pid)
                end(made)
        threads = [threading.Thread(target=some) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        result = [pids, before, descriptors(), all(map(is_gone, pids)), len(children)]
    """)
    assert (len(pids), after, gone, left) == (60, before, True, 1)
    assert agent("result = descriptors(zygote.pid)") == 3


def test_a_fork_without_room_for_descriptors_fails_and_leaves_nothing(agent: SmallAgent) -> None:
    answers, same, left = agent("""
        import resource
        end(zygote.fork("a:1:h"))
        before, answers = descriptors(), []
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for room in range(9):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + room, limits[1]))
            try: end(zygote.fork("a:1:h")); answers.append("forked")
            except OSError as error: answers.append(error.strerror)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        end(zygote.fork("a:1:h"))
        children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        result = [answers, descriptors() == before, len(children)]
    """)
    assert (same, left) == (True, 1)
    assert "forked" in answers[-1:]
    assert {answer.rpartition(":")[2].rpartition("]")[2].strip() for answer in answers} == {
        "Too many open files",
        "forked",
    }


def test_what_a_zygote_has_not_waited_for_when_it_ends_is_reaped(agent: SmallAgent) -> None:
    left, was_between = agent("""
        import sandboxrun.sandbox.supervisor.zygote as module, signal, time
        write, end_process, was_between = os.write, module._Process.end, False
        def children(pid): return open(f"/proc/{pid}/task/{pid}/children").read().split()
        def stop_the_zygote_once_it_has_forked(fd, data):
            os.write = write
            written, until = write(fd, data), time.monotonic() + 0.05
            while not children(zygote.pid) and time.monotonic() < until: pass
            os.kill(zygote.pid, signal.SIGSTOP)
            return written
        def look_and_end(process):
            global was_between
            was_between = bool(children(process.pid))
            end_process(process)
        module._Process.end = look_and_end
        while not was_between:
            end(zygote.fork("a:1:h"))
            os.write, module._REPLY_SECONDS = stop_the_zygote_once_it_has_forked, 0.3
            try:
                end(zygote.fork("a:1:h"))
                os.kill(zygote.pid, signal.SIGCONT)  # it was stopped too late
            except OSError: pass
            module._REPLY_SECONDS = 20
        end(zygote.fork("a:1:h"))
        result = [len(children(os.getpid())), was_between]
    """)
    assert (left, was_between) == (1, True)


def test_a_fork_that_the_kernel_refuses_is_an_error_with_its_reason(agent: SmallAgent) -> None:
    if os.geteuid() == 0:
        pytest.skip("root is exempt from RLIMIT_NPROC")
    answer = agent("""
        import resource
        zygote.close()
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
        zygote = Zygote.__new__(Zygote)
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        zygote = Zygote()
        resource.prlimit(zygote.pid, resource.RLIMIT_NPROC, (1, hard))
        try: zygote.fork("a:1:h")
        except OSError as error: result = error.strerror
        end(zygote.fork("a:1:h"))
    """)
    assert answer == "Resource temporarily unavailable"
