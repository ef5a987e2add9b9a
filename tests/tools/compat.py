"""How much of the test suite of Python passes inside the sandbox, compared with the same tests outside of it.

    python tests/tools/compat.py [--json FILE] [--allow KIND=LIST]... [MODULE...]

Each module has its own process and time limit. The tests are those of the package `test` of the running interpreter (on Debian
libpython3.11-testsuite); unittest runs them with all resources (network, cpu, …) off. It prints a Markdown table; the JSON has
every test that differs, with the end of its traceback and a reason that was found in that text.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sandboxrun.config.permissions import KINDS

CONFINE = Path(__file__).parents[1] / "kernel" / "confine.py"
MODULE_SECONDS, TEST_SECONDS, RESTARTS = 120, 8, 30
NEVER = "settime|sethostname"  # unconfined and as root these tests would change the machine
# Grants of all modules, because their servers listen on loopback, and many tests run the interpreter once more.
EVERYONE = {
    "net": "127.0.0.1,[::1],localhost",
    "listen": "127.0.0.1:0,[::1]:0,0.0.0.0:0,[::]:0",
    "run": f"{sys.executable},{os.path.realpath(sys.executable)}",
}

# Module: the tests, by default test.test_MODULE. `/REGEX` behind a name takes the tests that match.
TESTS = {
    "asyncio": [f"test.test_asyncio.test_{part}" for part in ("streams", "events", "tasks", "locks", "queues", "futures", "selector_events", "protocols", "runners", "timeouts", "taskgroups", "sslproto")],
    "concurrent.futures (threads)": ["test.test_concurrent_futures/ThreadPool"],
    "contextvars": ["test.test_context"],
    "ctypes": ["test.test_ctypes"],
    "collections": ["test.test_collections", "test.test_deque", "test.test_ordered_dict"],
    "http": ["test.test_httplib", "test.test_httpservers", "test.test_http_cookies", "test.test_http_cookiejar"],
    "io": ["test.test_io/^(?!.*(?:Interrupt|Signal))", "test.test_fileio", "test.test_memoryio"],
    "os": ["test.test_os", "test.test_posix", "test.test_posixpath"],
    "pathlib, glob": ["test.test_pathlib", "test.test_glob"],
    "select": ["test.test_select", "test.test_poll", "test.test_epoll"],
    "urllib": ["test.test_urlparse", "test.test_urllib", "test.test_urllib2", "test.test_urllib2_localnet", "test.test_urllib_response"],
    "unittest": ["test.test_unittest"],
    "xml": ["test.test_xml_etree", "test.test_minidom", "test.test_sax"],
}  # fmt: skip
MODULES = """json re threading sqlite3 ssl zlib tempfile pathlib,_glob os shutil zipfile tarfile hashlib hmac datetime
decimal struct io select selectors signal queue concurrent.futures_(threads) urllib http email unittest logging math random
statistics collections itertools functools pickle csv bz2 lzma gzip ctypes mmap time contextlib contextvars dataclasses enum
typing copy base64 codecs configparser argparse heapq operator fcntl file resource locale zoneinfo uuid secrets ipaddress
socketserver smtplib xml tomllib subprocess asyncio socket"""
# Further grants of single modules, for instance to read users and groups.
USERS = {"read": "/etc/passwd,/etc/group,/etc/nsswitch.conf"}
GRANTS: dict[str, dict[str, str]] = {
    "os": USERS, "pathlib, glob": USERS, "shutil": USERS, "tarfile": USERS, "zipfile": USERS, "http": USERS,
    "subprocess": {"run": "true,sh"},
}  # fmt: skip

# Resources of the tests (`regrtest -u`) whose use stays on loopback.
RESOURCES = {"socketserver": ["network"]}

RUN = r"""
import json, os, re, socket, sys, threading, time, traceback, unittest
P = json.loads(%r)
OUT = os.dup(1)
def say(**about):
    os.write(OUT, b"RESULT " + json.dumps(about).encode() + b"\n")
class Result(unittest.TestResult):
    current, since = None, 0.0
    def startTest(self, test):
        super().startTest(test)
        self.current, self.since = test.id(), time.monotonic()
        self.outcome = ("passed", "")
    def stopTest(self, test):
        super().stopTest(test)
        say(id=test.id(), status=self.outcome[0], text=self.outcome[1])
        self.current = None
        if os.path.lexists(os_helper.TESTFN):  # of a test that failed before its tearDown: the next would fail of it
            (os_helper.rmtree if os.path.isdir(os_helper.TESTFN) else os.unlink)(os_helper.TESTFN)
    def note(self, status, test, text):
        if getattr(self, "current", None):
            if self.outcome[0] not in ("failed", "error"):
                self.outcome = (status, text[-3000:])
        else:  # setUpClass, setUpModule
            say(id=test.id() if hasattr(test, "id") else str(test), status=status, text=text[-3000:])
    def text(self, error):
        return "".join(traceback.format_exception(*error, limit=-6))
    def addError(self, test, error): self.note("error", test, self.text(error))
    def addFailure(self, test, error): self.note("failed", test, self.text(error))
    def addSkip(self, test, reason): self.note("skipped", test, reason)
    def addExpectedFailure(self, test, error): pass
    def addUnexpectedSuccess(self, test): self.note("failed", test, "unexpected success")
    def addSubTest(self, test, sub, error):
        if error is not None:
            self.note("failed" if issubclass(error[0], AssertionError) else "error", test, self.text(error))
    def _setupStdout(self): pass
    def _restoreStdout(self): pass
result = Result()
def watch():
    while True:
        time.sleep(0.5)
        name = result.current
        if name and time.monotonic() - result.since > P["seconds"]:
            frame = sys._current_frames().get(threading.main_thread().ident)
            say(id=name, status="error", text="".join(traceback.format_stack(frame)[-6:]) + "TimeoutError: the test hangs")
            os._exit(3)
def tests(suite):
    for test in suite:
        if isinstance(test, unittest.BaseTestSuite):
            yield from tests(test)
        else:
            yield test
from test import support
from test.support import os_helper, socket_helper
try:
    socket.socket(socket.AF_UNIX).close()
except OSError as error:
    socket_helper._bind_nix_socket_error = error  # else some modules fail while they are imported, over one decorator
support.use_resources, support.verbose = P["resources"], 0
threading.Thread(target=watch, daemon=True).start()
done = set(P["done"])
for name in P["tests"]:
    name, _, pattern = name.partition("/")
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(name)
    except unittest.SkipTest as skip:
        say(id=name, status="skipped", text=str(skip))
        continue
    except BaseException as error:
        say(id=name, status="error", text=traceback.format_exc(limit=-6))
        continue
    chosen = [test for test in tests(suite) if test.id() not in done and (re.search(pattern, test.id()) or "_FailedTest" in test.id()) and not re.search(P["never"], test.id())]
    unittest.TestSuite(chosen).run(result)
say(end=True)
os._exit(0)
"""
# The first pattern that matches the end of the traceback gives the reason.
REASONS = [
    ("bind to a name, which libc looks up", r"(?s)bind\(.*(?:gaierror|Name or service not known)"),
    ("hangs", r"TimeoutError: the test hangs"),
    ("listen or bind refused", r"\b(?:_?create_server|listen|bind|bind_port|find_unused_port|bind_unix_socket|HTTPServer|start_server|server_bind|serve)\(?.*(?s:.*)(?:PermissionError|not permitted|denied)"),
    ("fork or exec refused", r"(?s)\b(?:fork|forkpty|_fork_exec|posix_spawn|Popen|subprocess|system|execv\w*|spawn\w*)\b.*(?:PermissionError|not permitted|BlockingIOError|denied)"),
    ("chmod, chown or utime refused", r"(?s)\b(?:chmod|lchmod|fchmod|chown|lchown|fchown|utime|copystat|copymode|copy2|copytree|setxattr|chflags)\b.*(?:PermissionError|not permitted|denied)|st_mtime|getmtime"),
    ("special files (mkfifo, mknod) refused", r"(?s)\b(?:mkfifo|mknod|openpty)\b.*(?:PermissionError|not permitted|denied)"),
    ("UDP, Unix and other sockets refused", r"(?s)(?:socket\(|socketpair|SOCK_DGRAM|AF_UNIX|_socket).*(?:PermissionError|not permitted|denied)"),
    ("connect refused", r"(?s)\bconnect\w*\(.*(?:PermissionError|denied|Requires net)"),
    ("socket option or ioctl refused", r"(?s)(?:setsockopt|ioctl|fcntl)\(.*(?:PermissionError|not permitted)"),
    ("signal to another process refused", r"(?s)\b(?:kill|killpg|pthread_kill|pidfd_send_signal)\b.*(?:PermissionError|not permitted)"),
    ("file outside the grants", r"PermissionError: \[Errno 13\].*'/|Permission denied: '/"),
    ("another call refused", r"PermissionError: \[Errno 1\]|not permitted|Function not implemented"),
    ("file access refused", r"PermissionError: \[Errno 13\]"),
    ("memory limit", r"MemoryError|Cannot allocate memory|can't start new thread"),
    ("names are not resolved", r"gaierror"),
]  # fmt: skip


def reason(status: str, text: str) -> str:
    if status == "missing":
        return "not run (module or class set-up failed, or the process ended)"
    if status == "skipped":
        return f"skipped: {text.splitlines()[0][:60].rstrip('.') if text else ''}"
    for name, pattern in REASONS:
        if re.search(pattern, text):
            return name
    line = re.sub(r"'/[^']*'", "PATH", (text.strip().splitlines() or [""])[-1])
    return "other: " + re.sub(r"[0-9][0-9.]*", "N", line)[:80]


def run_module(tests: list[str], resources: list[str], grants: dict[str, str] | None) -> dict[str, dict[str, str]]:
    """Outcomes by test id; confined with these grants, or unconfined if they are None."""
    found: dict[str, dict[str, str]] = {}
    deadline = time.monotonic() + MODULE_SECONDS
    for _ in range(RESTARTS):
        with tempfile.TemporaryDirectory(prefix="compat-", ignore_cleanup_errors=True) as folder:
            scratch = Path(folder, "scratch")
            scratch.mkdir(mode=0o700)
            script = Path(folder, "run.py")
            script.write_text(
                RUN
                % json.dumps(
                    {
                        "tests": tests,
                        "done": sorted(found),
                        "seconds": TEST_SECONDS,
                        "never": NEVER,
                        "resources": resources,
                    }
                )
            )
            command = [sys.executable, "-I", "-X", "utf8", str(script)]
            if grants is not None:
                command = [
                    sys.executable,
                    str(CONFINE),
                    json.dumps({"script": str(script), "scratch": str(scratch), "allow": grants}),
                ]
            env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(scratch), "TMPDIR": str(scratch)}
            with open(Path(folder, "out"), "w+b") as out:
                process = subprocess.Popen(command, cwd=scratch, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
                try:
                    code: int | str = process.wait(max(1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = f"killed after {MODULE_SECONDS} s"
                    process.wait()
                out.seek(0)
                text = out.read().decode("utf-8", "replace")
            for path in [scratch, *scratch.rglob("*")]:
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)
            before, ended = len(found), False
            for line in re.findall(r"RESULT (\{.*\})", text):
                try:
                    about = json.loads(line)
                except ValueError:  # a forked test wrote at the same time
                    continue
                ended |= "end" in about
                if "id" in about:
                    found[about["id"]] = about
            if ended or time.monotonic() > deadline:
                break
            if len(found) == before:
                found["the process"] = {"status": "error", "text": f"it ended with {code}"}
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Python's own tests, inside and outside the sandbox.")
    parser.add_argument("--json", metavar="FILE", default="compat.json", help="where the differing tests go")
    parser.add_argument(
        "--allow", metavar="KIND=LIST", action="append", default=[], help="a further grant for all modules"
    )
    parser.add_argument("modules", nargs="*")
    args = parser.parse_args()
    names = args.modules or [word.replace("_(", " (").replace(",_", ", ") for word in MODULES.split()]
    report: dict[str, Any] = {"python": sys.version.split()[0], "uid": os.getuid(), "kinds": list(KINDS), "modules": {}}
    print(
        "| module | unconfined passed | confined passed | failed, errors, skipped | differ | why |\n|---|---|---|---|---|---|",
        flush=True,
    )
    totals = collections.Counter[str]()
    all_reasons = collections.Counter[str]()
    for name in names:
        tests = TESTS.get(name, [f"test.test_{name}"])
        grants = dict(EVERYONE)
        for kind, text in (*GRANTS.get(name, {}).items(), *(extra.split("=", 1) for extra in args.allow)):
            grants[kind] = ",".join(filter(None, (grants.get(kind), text)))
        resources = RESOURCES.get(name, [])
        free, held = run_module(tests, resources, None), run_module(tests, resources, grants)
        if not any(one["status"] == "passed" for one in free.values()):
            print(f"{name}: not among this interpreter's tests", file=sys.stderr)
            continue
        missing = {"status": "missing", "text": ""}
        differ = {
            id_: {
                "unconfined": free.get(id_, missing)["status"],
                "confined": held.get(id_, missing)["status"],
                "reason": reason(held.get(id_, missing)["status"], held.get(id_, missing)["text"]),
                "text": held.get(id_, missing)["text"],
            }
            for id_ in sorted(free.keys() | held.keys())
            if free.get(id_, missing)["status"] != held.get(id_, missing)["status"]
        }
        counts = [collections.Counter(one["status"] for one in run.values()) for run in (free, held)]
        lost = {id_: about for id_, about in differ.items() if about["unconfined"] == "passed"}
        why = collections.Counter(about["reason"] for about in lost.values())
        all_reasons.update(why)
        report["modules"][name] = {"unconfined": counts[0], "confined": counts[1], "differ": differ}
        totals.update(free=counts[0]["passed"], held=counts[1]["passed"], lost=len(lost))
        shown = "; ".join(f"{n} × {text}" for text, n in why.most_common(4)).replace("|", "/")
        rest = ", ".join(str(counts[1][status]) for status in ("failed", "error", "skipped"))
        print(
            f"| {name} | {counts[0]['passed']} | {counts[1]['passed']} | {rest} | {len(lost)} | {shown} |", flush=True
        )
        Path(args.json).write_text(json.dumps(report, indent=1))
    print(
        f"| **all** | {totals['free']} | {totals['held']} | | {totals['lost']} | |\n\nReasons of tests that pass unconfined only:\n"
    )
    for text, number in all_reasons.most_common():
        print(f"- {number} × {text}")


if __name__ == "__main__":
    main()
