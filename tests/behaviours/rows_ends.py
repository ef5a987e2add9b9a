"""Acts that no process survives: the request becomes a dead letter, and the next worker goes on. And orderly ends."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
import time

from rows import ASYNC, OK, THREADS, add, row

for number in (
    signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGALRM,
    signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGVTALRM, signal.SIGPROF, signal.SIGTRAP, signal.SIGSYS,
):  # fmt: skip

    def end(request, number=number):
        os.kill(os.getpid(), number)
        time.sleep(30)

    add(f"end by {number.name}", end, group="ends", ends=True)
add("os._exit(0)", lambda request: os._exit(0), group="ends", ends=True)
add("os._exit(3)", lambda request: os._exit(3), group="ends", ends=True)
add("os.abort()", lambda request: os.abort(), group="ends", ends=True)
add("a NULL pointer", lambda request: ctypes.string_at(0), group="ends", ends=True)
add("exit(3) of the C library", lambda request: ctypes.CDLL(None)._exit(3), group="ends", ends=True)


@row(group="ends", ends=True)
def no_time_left_on_the_processor(request):
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


@row(group="ends", ends=True)
def a_time_out_of_faulthandler(request):
    with open("dump", "w") as file:
        faulthandler.dump_traceback_later(0.05, exit=True, file=file)
        time.sleep(30)


@row(
    group="ends",
    ends=True,
    modes=(THREADS, ASYNC),
    reason="a plain worker has no event loop that cannot do without its descriptors",
)
def close_the_event_loop_s_descriptors(request):
    os.closerange(3, 100)


@row(OK, group="leaves", leaves=True)
def end_by_SIGTERM(request):
    os.kill(os.getpid(), signal.SIGTERM)
    return {"ok": True}


@row(OK, group="leaves", leaves=True)
def end_by_SIGINT(request):
    os.kill(os.getpid(), signal.SIGINT)
    return {"ok": True}


@row(OK, group="leaves", leaves=True)
def end_by_raise_signal(request):
    signal.raise_signal(signal.SIGTERM)
    return {"python": sys.version_info.major}
