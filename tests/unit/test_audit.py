"""The audit log: lines that are whole, bounded and in order, and what happens where they cannot be written."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxrun.config.permissions import Denial, Kind
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.log import Log
from sandboxrun.policy.audit import LINE_MAX_BYTES, Audit

WRITER = """
import sys
from sandboxrun.policy.audit import Audit
audit = Audit([sys.argv[1]], worker=sys.argv[2], warn=print)
for number in range(300):
    audit.record("denial", "refused", number=number, text="x" * 6000)
"""


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_who_what_and_when_and_drives_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Audit([str(path)], worker="t:1:h", warn=pytest.fail) as audit:
        audit.about(version="v1", sha256="ab")
        audit.record("grant", "allowed", allow={"net": ["\x1b[2J\u202e\ud800"]})
    data = path.read_bytes()
    assert data.isascii() and b"\x1b" not in data and data.count(b"\n") == 1
    (line,) = read(path)
    assert line.pop("time")[10] == "T"
    assert line == {
        "host": os.uname().nodename, "user": line["user"], "uid": os.getuid(), "pid": os.getpid(), "worker": "t:1:h", "version": "v1",
        "sha256": "ab", "event": "grant", "outcome": "allowed", "details": {"allow": {"net": ["\x1b[2J\u202e\ud800"]}},
    }  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600


def test_writers_at_once_never_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"t:{n}:h"]) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for number in range(3):
        mine = [line["details"]["number"] for line in read(path) if line["worker"] == f"t:{number}:h"]
        assert mine == list(range(300))


def test_a_line_is_bounded_and_says_that_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Audit([str(path)], worker="t:1:h", warn=pytest.fail) as audit:
        audit.record("grant", "allowed", allow={"read": ["/" + "\u202e" * 60_000]})
    assert len(path.read_bytes()) <= LINE_MAX_BYTES + 1
    assert read(path)[0]["details"]["cut"].startswith('{"allow": {"read": ["/')


def test_an_error_that_ends_the_run_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(PolicyError), Audit([str(path)], worker="t:1:h", warn=pytest.fail):
        raise PolicyError("beyond")
    (line,) = read(path)
    assert (line["event"], line["outcome"]) == ("error", "refused")
    assert line["details"] == {"message": "beyond", "exit_code": 77}


def test_only_decisions_among_our_messages_are_written_down_also_those_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(quiet=True, stream=io.StringIO())
    with Audit([str(path)], worker="t:1:h", warn=pytest.fail) as audit:
        log.observer = audit.logged
        log.info("fetch", "x")
        log.info("start", "runs", pid=5)
        log.denied(Denial(Kind.NET, "a:1", None, "t:1:h"))
        log.debug("stop", "SIGTERM")
        log.warning("config", "x")
    assert [line["event"] for line in read(path)] == ["start", "denial", "stop"]
    assert read(path)[1]["details"] == {
        "message": 'Requires net access to "a:1", which denyNet of t:1:h refuses', "kind": "net", "target": "a:1", "grant": None,
    }  # fmt: skip


def test_before_the_start_a_failure_refuses_and_afterwards_it_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    said: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Audit([str(path)], worker="t:1:h", warn=said.append) as audit:
            audit.record("run", "asked")
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
            with pytest.raises(ConfigError, match=f"the audit log {path} cannot be written"):
                audit.record("grant", "allowed")  # ten bytes of it: a torn line
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            audit.logged("info", "start", "runs", {})
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
            for _ in range(3):
                audit.record("denial", "refused")
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            audit.record("end", "ended")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert len(said) == 1
    assert "decisions are missing" in said[0]
    lines = path.read_text().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], *lines[2:])] == ["run", "start", "end"]
    assert len(lines[1]) == 10  # and the next line began anew


@pytest.mark.parametrize("kind", ["folder", "missing", "fifo", "device"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    named = {"missing": str(path / "log"), "device": "/dev/null"}.get(kind, str(path))
    with pytest.raises(ConfigError, match=f"the audit log {named} "):
        Audit([named], worker="t:1:h", warn=pytest.fail)


def test_the_journal_gets_one_datagram_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "socket"  # the whole path may be too long for an address
    with pytest.raises(ConfigError, match="there is no systemd journal"):
        Audit(["journal"], worker="t:1:h", warn=pytest.fail, journal=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        with Audit(["journal"], worker="t:1:h", warn=pytest.fail, journal=path) as audit:
            audit.record("grant", "allowed", text="a\nMESSAGE=forged")
        data = journal.recv(65536)
    fields = [line.partition(b"=") for line in data.splitlines()]
    assert [name for name, _, _ in fields] == [b"PRIORITY", b"SYSLOG_IDENTIFIER", b"SANDBOXRUN_EVENT", b"MESSAGE"]
    assert json.loads(fields[3][2])["details"] == {"text": "a\nMESSAGE=forged"}
