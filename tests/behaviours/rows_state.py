"""Handlers that change the process they share with others: signals, modules, the interpreter."""

from __future__ import annotations

import builtins
import decimal
import gc
import json
import locale
import logging
import os
import signal
import sys
import time
import warnings

from rows import ANSWERED, FAILED, OK, PLAIN, add, raising, row

MAIN_ONLY = {"modes": (PLAIN, "async"), "reason": "only the main thread may set a handler of signals"}


def kept(owner, name, value, act, code=FAILED, **more):
    """The handler replaces a name by `value`, acts, and restores the name after the answer is due."""

    def run(request):
        before = getattr(owner, name)
        setattr(owner, name, value)
        try:
            return act(request)
        finally:
            setattr(owner, name, before)

    add(f"{owner.__name__}.{name} is {type(value).__name__} meanwhile", run, code, group="state", **more)


def refuse(*_, **__):
    raise ValueError("replaced")


kept(builtins, "print", refuse, lambda request: print("x"))
kept(builtins, "open", refuse, lambda request: open("/dev/null"))
kept(builtins, "__import__", refuse, lambda request: __import__("colorsys"))
kept(sys, "path", [], lambda request: __import__("no_such_module"))
kept(sys, "path", None, lambda request: __import__("no_such_module_2"))
kept(sys, "argv", [], lambda request: {"ok": True}, OK)
kept(sys, "meta_path", [], lambda request: __import__("chunk"))
kept(sys, "displayhook", refuse, lambda request: sys.displayhook(1))
kept(sys, "unraisablehook", refuse, lambda request: None, OK)
kept(sys, "tracebacklimit", 0, lambda request: 1 / 0) if hasattr(sys, "tracebacklimit") else None
kept(os, "environ", {}, lambda request: os.environ["REDIS_URL"])
kept(os, "getcwd", refuse, lambda request: os.getcwd())
kept(time, "sleep", refuse, lambda request: time.sleep(0))
kept(json, "loads", refuse, lambda request: json.loads("{}"))
kept(gc, "callbacks", [], lambda request: None, OK)
# Lasting changes: each row runs after those of the rows before.
STAYS = {
    "json.dumps that raises": lambda: setattr(json, "dumps", refuse),
    "json.JSONEncoder that is gone": lambda: delattr(json, "JSONEncoder"),
    "warnings that are errors": lambda: warnings.simplefilter("error"),
    "garbage that is not collected": gc.disable,
    "another folder": lambda: os.chdir("/"),
    "another umask": lambda: os.umask(0),
    "an empty environment": os.environ.clear,
    "another precision": lambda: setattr(decimal.getcontext(), "prec", 1),
    "logging that raises": lambda: setattr(logging, "raiseExceptions", True),
    "another locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "a profile function": lambda: sys.setprofile(lambda *_: None),
    "a trace function": lambda: sys.settrace(lambda *_: None),
    "a switch interval": lambda: sys.setswitchinterval(0.0001),
    "builtins.print that raises": lambda: setattr(builtins, "print", refuse),
    "an audit hook": lambda: sys.addaudithook(lambda *_: None),
    "time.strftime that raises": lambda: setattr(time, "strftime", refuse),
    "time.gmtime that raises": lambda: setattr(time, "gmtime", refuse),
    "a module of ours that is gone": lambda: sys.modules.pop("sandboxrun.worker.request"),
    "traceback that is gone": lambda: sys.modules.__setitem__("traceback", None),
    "linecache that is gone": lambda: sys.modules.__setitem__("linecache", None),
    "no modules at all": lambda: sys.modules.clear(),
}
for label, act in STAYS.items():
    add(f"{label}, and an error", lambda request, act=act: (act(), 1 / 0), group="stays")
    if label == "no modules at all":
        break  # the rest cannot be counted, because the worker script itself imports
    add(f"{label}, and a result", lambda request: {"done": True}, ANSWERED, group="stays")
    add(f"{label}, and a wrong result", lambda request: {"o": object()}, group="stays")


@row(OK, group="state", **MAIN_ONLY)
def a_signal_of_its_own(request):
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.kill(os.getpid(), signal.SIGUSR1)


@row(group="state", **MAIN_ONLY)
def a_signal_handler_that_raises(request):
    signal.signal(signal.SIGUSR1, refuse)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.1)


@row(group="state", **MAIN_ONLY)
def a_signal_handler_that_exits(request):
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.1)


def late(*_):
    raise TimeoutError("an alarm of the script's")


for seconds in (0.001, 0.02, 0.1):

    def alarm(request, seconds=seconds):
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return {"left": seconds}

    # It may come while the reply is made, or between two requests.
    add(f"an alarm left behind, due in {seconds} s", alarm, ANSWERED, group="alarms", **MAIN_ONLY)


@row(group="state", **MAIN_ONLY)
def an_alarm_in_time(request):
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(10)


@row(OK, group="state", **MAIN_ONLY)
def child_signals_ignored(request):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@row(OK, group="state", **MAIN_ONLY)
def a_broken_pipe_by_signal(request):
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


@row(FAILED, group="state", modes=("threads",), reason="elsewhere it may")
def set_a_signal_handler_in_a_thread(request):
    signal.signal(signal.SIGUSR1, refuse)


@row(OK, group="state")
def a_finaliser_that_fails(request):
    class Ends:
        def __del__(self):
            raise SystemExit(3)

    Ends()


@row(OK, group="state")
def garbage_whose_finaliser_fails(request):
    class Ends:
        def __init__(self):
            self.me = self

        def __del__(self):
            raise KeyboardInterrupt

    Ends()
    gc.collect()


@row(OK, group="state")
def an_atexit_function_that_fails(request):
    import atexit

    atexit.register(raising, ValueError("at exit"))


@row(OK, group="state")
def two_hundred_files_in_scratch(request):
    for n in range(200):
        with open(f"file-{n}", "w") as file:
            file.write("x")


@row(FAILED, group="state")
def a_file_past_the_limit(request):
    with open("large", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 40)


@row(FAILED, group="state")
def write_where_nothing_is_granted(request):
    open("/etc/passwd", "a")


@row(FAILED, group="state")
def connect_where_nothing_is_granted(request):
    import socket

    socket.create_connection(("192.0.2.1", 80), 1)
