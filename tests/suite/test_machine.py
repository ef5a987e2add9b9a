"""The processes of the suite get the same signals, umask, environment, locale and zone, whoever started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect
import pytest
from machine import KEPT, PLAIN, SET

ROOT = Path(__file__).parents[2]
SHOWN = """\
import json, locale, os, signal, time
mask = os.umask(0)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"env": dict(os.environ), "umask": mask, "zone": time.timezone, "locale": locale.getlocale(),
                  "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16)}))
"""
PYTHONS_OWN = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1  # Python ignores them at its start
STRANGE = {
    "PATH": f"{os.environ['PATH']}::.:bin",
    "TZ": "Asia/Kathmandu",
    "LC_ALL": "tr_TR.ISO-8859-9",
    "REDIS_URL": "redis://127.0.0.1:1",
    "XDG_CONFIG_HOME": "/nonexistent/elsewhere",
    "http_proxy": "http://127.0.0.1:9",
    "NO_COLOR": "1",
    "COLUMNS": "20",
    "PYTHONWARNINGS": "default",
    "OPENSSL_CONF": "/nonexistent",
    "SANDBOXRUN_TRACE_STARTUP": "/nonexistent/trace",
}
# Start the rest of the command with every possible signal ignored and blocked.
START = """\
import os, signal, sys
numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
for number in numbers:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
os.umask(0o777)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def shown() -> dict[str, object]:
    out = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, check=True).stdout
    found: dict[str, object] = json.loads(out)
    return found


def test_what_a_test_starts_has_nothing_of_the_machine() -> None:
    found = shown()
    env = found["env"]
    assert isinstance(env, dict)
    assert {name for name in env if not KEPT.fullmatch(name)} - {"PATH", "TMPDIR"} == set(SET)
    assert all(os.path.isabs(entry) for entry in env["PATH"].split(os.pathsep))
    assert (found["umask"], found["zone"], found["locale"]) == (0o022, 0, ["en_US", "UTF-8"])
    assert (found["ignored"], found["blocked"]) == (PYTHONS_OWN, 0)


def test_what_a_test_starts_at_a_terminal_has_nothing_of_the_machine() -> None:
    spawned = pexpect.spawn(sys.executable, ["-c", SHOWN], encoding="utf-8", timeout=30)
    found = json.loads(spawned.read())
    spawned.close()
    assert (found["ignored"], found["blocked"], found["umask"]) == (PYTHONS_OWN, 0, 0o022)
    assert (found["zone"], found["env"]["TZ"]) == (0, "UTC0")


def test_the_temporary_folder_has_a_plain_name() -> None:
    assert PLAIN.fullmatch(tempfile.gettempdir())


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
def test_it_does_not_matter_how_the_suite_is_started(workers: str, tmp_path: Path) -> None:
    named = [f"{__file__}::{name}" for name in INNER]
    command = [sys.executable, "-c", START, "-m", "pytest", "-q", workers, *named]
    strange = tmp_path / "a temporary folder, ünlike others"
    strange.mkdir()
    env = STRANGE | {"TMPDIR": str(strange)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(INNER)} passed" in done.stdout


# Shells without job control let their background jobs ignore SIGINT and SIGQUIT.
def test_the_shells_background_job_is_interrupted_as_any_other(tmp_path: Path) -> None:
    test = "tests/redis/test_dev.py::test_without_a_terminal_it_runs_until_a_signal_and_leaves_nothing"
    script = f"'{sys.executable}' -m pytest -q -n0 --timeout=60 {test} & wait $!"
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr


INNER = (
    test_what_a_test_starts_has_nothing_of_the_machine.__name__,
    test_what_a_test_starts_at_a_terminal_has_nothing_of_the_machine.__name__,
    test_the_temporary_folder_has_a_plain_name.__name__,
)
