"""What tests take from their machine: the kernel, the programs on PATH and a temporary folder; nothing else.

A process inherits an environment, ignored and blocked signals, a umask, a locale and a time zone. The tests, and all
processes that they start, get the same ones on any machine.
"""

from __future__ import annotations

import contextlib
import json
import locale
import os
import re
import signal
import tempfile
import time

KEPT = re.compile(r"CI|LD_LIBRARY_PATH|CHAOS_\w+|SANDBOXRUN_TESTS?_\w+|PYTEST_\w+|COV_\w+|COVERAGE_\w+")
# What reaches a package index from here. Only tests that install something use it, by `installing`.
INSTALLING = re.compile(r"HOME|PIP_\w+|UV_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(http|https|no|all)_proxy", re.IGNORECASE)
SET_ASIDE = "SANDBOXRUN_TESTS_INSTALLING"
SET = {"LANG": "C.UTF-8", "TZ": "UTC0", "HOME": "/nonexistent"}
USUAL = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
UMASK = 0o022
# The workers of the tests lie in the temporary folder: their paths are URLs and entries of lists, and sockets lie below.
PLAIN = re.compile(r"/[\w./+-]{1,47}", re.ASCII)


def leave_behind() -> None:
    """Call it once in each process, before an import reads the environment."""
    path = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(entry)]
    kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    if SET_ASIDE not in kept:  # a process of xdist has it from the one that has started it
        kept[SET_ASIDE] = json.dumps({name: os.environ[name] for name in os.environ if INSTALLING.fullmatch(name)})
    if PLAIN.fullmatch(os.environ.get("TMPDIR", "")):
        kept["TMPDIR"] = os.environ["TMPDIR"]
    os.environ.clear()
    for name in ("LINES", "COLUMNS"):
        os.unsetenv(name)  # readline, which pytest imports, sets these two without os.environ
    os.environ.update(kept | SET | {"PATH": os.pathsep.join(dict.fromkeys((*path, *USUAL)))})
    tempfile.tempdir = None  # the folder that it chose before
    time.tzset()
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.umask(UMASK)
    reset_signals()


def installing() -> dict[str, str]:
    """The environment of pip and of other installers."""
    found: dict[str, str] = json.loads(os.environ[SET_ASIDE])
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **found}


def reset_signals() -> None:
    """Block none, and ignore only those that Python itself ignores, which `subprocess` restores."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
