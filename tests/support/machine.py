"""What tests take from their machine: its kernel, its programs on PATH and a temporary folder; nothing else.

Whoever starts the suite passes on an environment, ignored and blocked signals, a umask, a locale and a time zone. The tests,
and all processes that they start, get the same ones on any machine.
"""

from __future__ import annotations

import contextlib
import locale
import os
import re
import signal
import tempfile
import time

KEPT = re.compile(r"CI|LD_LIBRARY_PATH|CHAOS_\w+|SANDBOXRUN_TESTS_\w+|PYTEST_\w+|COV_\w+|COVERAGE_\w+")
SET = {"LANG": "C.UTF-8", "TZ": "UTC0", "HOME": "/nonexistent"}
USUAL = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
UMASK = 0o022
# Workers of the tests lie in it: their paths are URLs, and entries of lists, and have sockets below them.
PLAIN = re.compile(r"/[\w./+-]{1,47}", re.ASCII)


def leave_behind() -> None:
    """Once a process, before anything else is imported that reads the environment."""
    path = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(entry)]
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    if PLAIN.fullmatch(os.environ.get("TMPDIR", "")):
        kept["TMPDIR"] = os.environ["TMPDIR"]
    os.environ.clear()
    for name in ("LINES", "COLUMNS"):
        os.unsetenv(name)  # readline, which pytest imports, sets these two behind the back of os.environ
    os.environ.update(kept | SET | {"PATH": os.pathsep.join(dict.fromkeys((*path, *USUAL)))})
    tempfile.tempdir = None  # where it looked before
    time.tzset()
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.umask(UMASK)
    reset_signals()


def reset_signals() -> None:
    """None is blocked, and none is ignored but those that Python ignores itself, and that `subprocess` gives back."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
