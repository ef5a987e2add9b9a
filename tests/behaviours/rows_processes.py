"""Processes that a handler starts, and changes to the streams and descriptors of the worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

from rows import ANSWERED, ASYNC, FAILED, OK, PLAIN, row

NO_LOOP = {
    "modes": (PLAIN,),
    "reason": "an event loop whose descriptors are gone cannot go on: see the rows that end it",
}
FORKS = multiprocessing.get_context("fork")


def reaped(pid):
    return {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def fork(name, code, act):
    """The child does `act` and returns into the code of the worker; the parent returns the exit code of the child."""

    def run(request):
        pid = os.fork()
        if pid == 0:
            return act(request)
        found = reaped(pid)
        if found["code"] != code:
            raise ValueError(f"the child's exit code is {found['code']}")
        return found

    run.__name__ = name
    row(OK, group="processes")(run)


fork("fork a child that returns", 0, lambda request: {"child": True})
fork("fork a child that fails", 1, lambda request: 1 / 0)
fork("fork a child that exits", 7, lambda request: sys.exit(7))
fork("fork a child that exits without a code", 0, lambda request: sys.exit())
fork("fork a child that exits with a text", 1, lambda request: sys.exit("bye"))
fork("fork a child that ends at once", 9, lambda request: os._exit(9))
fork("fork a child that ends by SIGKILL", -9, lambda request: os.kill(os.getpid(), signal.SIGKILL))
fork("fork a child that ends by SIGTERM", -15, lambda request: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(30)))
fork("fork a child that ends by SIGINT", -2, lambda request: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30)))
fork("fork a child that is cancelled", 1, lambda request: (_ for _ in ()).throw(KeyboardInterrupt))
fork("fork a child that reports progress", 0, lambda request: request.progress("from a child"))
fork("fork a child that returns what is no result", 1, lambda request: {"o": object()} and 1 / 0)
fork("fork a child that prints", 0, lambda request: print("from a child"))
fork("fork a child that closes all", 0, lambda request: os.closerange(0, 50))
fork("fork a child that takes its time", 0, lambda request: time.sleep(0.3))


@row(OK, group="processes")
def fork_five_children(request):
    pids = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            return {"child": True}
        pids.append(pid)
    return {"codes": [reaped(pid)["code"] for pid in pids]}


@row(OK, group="processes", modes=(ASYNC,), reason="a child that goes back to the worker's event loop")
async def fork_a_child_that_awaits(request):
    import asyncio

    pid = os.fork()
    if pid == 0:
        await asyncio.sleep(0.05)
        return {"child": True}
    return reaped(pid)


@row(OK, group="processes")
def terminate_a_process(request):
    child = FORKS.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    return {"code": child.exitcode}


@row(OK, group="processes")
def kill_a_process(request):
    child = FORKS.Process(target=time.sleep, args=(60,))
    child.start()
    child.kill()
    child.join()
    return {"code": child.exitcode}


@row(OK, group="processes")
def a_process_that_fails(request):
    child = FORKS.Process(target=int, args=("x",))
    child.start()
    child.join()
    return {"code": child.exitcode}


@row(OK, group="processes")
def a_process_that_runs_the_worker(request):
    from sandboxrun import worker

    child = FORKS.Process(target=worker.run)
    child.start()
    child.join()
    if child.exitcode != 0:
        raise ValueError(child.exitcode)


@row(OK, group="processes")
def a_program(request):
    return {"out": subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True, check=True).stdout}


@row(OK, group="processes")
def a_program_with_a_preexec_fn(request):
    return {"code": subprocess.run(["/bin/true"], preexec_fn=lambda: None).returncode}


@row(FAILED, group="processes")
def a_program_whose_preexec_fn_fails(request):
    subprocess.run(["/bin/true"], preexec_fn=lambda: 1 / 0)


@row(FAILED, group="processes")
def a_program_that_fails(request):
    subprocess.run(["/bin/false"], check=True)


@row(FAILED, group="processes")
def a_program_that_is_not_there(request):
    subprocess.run(["/no/such/program"])


@row(FAILED, group="processes")
def a_program_that_takes_too_long(request):
    subprocess.run(["/bin/sleep", "60"], timeout=0.05)


@row(OK, group="processes")
def a_program_that_is_left(request):
    subprocess.Popen(["/bin/sleep", "0.2"])


@row(OK, group="processes")
async def an_asyncio_program_terminated(request):
    import asyncio

    process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
    process.terminate()
    return {"code": await process.wait()}


# --- standard streams: nothing is restored, so each row runs after the changes of the rows before


def stream(name, act, code=OK, **more):
    act.__name__ = name
    row(code, group="streams", **more)(act)


class Raises:
    def __init__(self, error=ValueError):
        self.error = error

    def write(self, text):
        raise self.error("in write")

    flush = fileno = isatty = write


class Hidden:
    def __str__(self):
        raise ValueError("in __str__")


def printing(stream):
    for _ in range(1000):
        print("x" * 100, file=stream)
    stream.flush()


stream("print a megabyte", lambda request: print("x" * 1_000_000))
stream("print a surrogate", lambda request: print("\ud800"), ANSWERED)
stream("print what cannot be shown", lambda request: print(Hidden()), FAILED)
stream("print bytes", lambda request: sys.stdout.buffer.write(b"\xff\0\n") and None)
stream("make both streams non-blocking", lambda request: [os.set_blocking(fd, False) for fd in (1, 2)] and None)
stream("print 100 KB to a non-blocking output", lambda request: printing(sys.stdout))
stream("print 100 KB to a non-blocking error", lambda request: printing(sys.stderr))
stream("an excepthook that raises", lambda request: (setattr(sys, "excepthook", lambda *a: 1 / 0), 1 / 0), FAILED)
stream("an excepthook that exits", lambda request: (setattr(sys, "excepthook", lambda *a: exit(3)), 1 / 0), FAILED)
stream(
    "an excepthook that is cancelled",
    lambda request: (setattr(sys, "excepthook", Raises(KeyboardInterrupt).write), 1 / 0),
    FAILED,
)
stream("an excepthook that is None", lambda request: (setattr(sys, "excepthook", None), 1 / 0), FAILED)
stream("no excepthook", lambda request: (delattr(sys, "excepthook"), 1 / 0), FAILED)
stream("a standard error whose write raises", lambda request: (setattr(sys, "stderr", Raises()), 1 / 0), FAILED)
stream(
    "a standard error whose write exits", lambda request: (setattr(sys, "stderr", Raises(SystemExit)), 1 / 0), FAILED
)
stream("a standard error that is a number", lambda request: (setattr(sys, "stderr", 3), 1 / 0), FAILED)
stream("no standard error", lambda request: (setattr(sys, "stderr", None), 1 / 0), FAILED)
stream("delete standard error", lambda request: (delattr(sys, "stderr"), 1 / 0), FAILED)
stream(
    "the first standard error closed",
    lambda request: (sys.__stderr__.close(), setattr(sys, "stderr", sys.__stderr__), 1 / 0),
    FAILED,
)
stream("a result that is wrong without standard error", lambda request: {"o": object()}, FAILED)
stream("a trace that is wrong without standard error", lambda request: request.trace(x={(1, 2): 3}), FAILED)
stream(
    "the usual excepthook with a closed error",
    lambda request: (setattr(sys, "excepthook", sys.__excepthook__), 1 / 0),
    FAILED,
)
stream("close the descriptor of standard error", lambda request: (os.close(2), 1 / 0), FAILED)
stream("an error without the descriptor", lambda request: 1 / 0, FAILED)
stream("take the descriptor for a socket", lambda request: KEPT.append(socket.socket()))
stream("an error with a socket for standard error", lambda request: 1 / 0, FAILED)
stream("no standard output", lambda request: setattr(sys, "stdout", None))
stream("print without standard output", lambda request: print("hello"))
stream("a standard output whose write raises", lambda request: (setattr(sys, "stdout", Raises()), print("x")), FAILED)
stream(
    "close standard output", lambda request: (sys.__stdout__.close(), setattr(sys, "stdout", sys.__stdout__)) and None
)
stream("print to a closed output", lambda request: print("hello"), FAILED)
stream("close the descriptor of standard output", lambda request: os.close(1))
stream("close standard input", lambda request: sys.stdin.close())
KEPT: list[object] = []


def close_all_descriptors(request):
    os.closerange(3, 100)


row(OK, group="descriptors", **NO_LOOP)(close_all_descriptors)


def shut_all_sockets_down(request):
    for fd in range(3, 100):
        try:
            socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


row(OK, group="descriptors")(shut_all_sockets_down)


@row(FAILED, group="descriptors")
def open_more_files_than_the_limit(request):
    files = []
    while True:
        files.append(open("/dev/null"))


@row(OK, group="descriptors")
def hold_all_descriptors_and_return(request):
    files = []
    try:
        while True:
            files.append(os.dup(0))
    except OSError:
        return {"held": len(files)}
    finally:
        for fd in files:
            os.close(fd)
