"""Kernels that lack something, by the whole command: refused by name, or run with what was forgone said and recorded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arena import Listener
from attack import arrived
from runner import Runner

from sandboxrun.sandbox.compile.features import Feature, Need

Local = Callable[..., Path]
LACKING = Path(__file__).with_name("lacking.py")
DEGRADABLE = [feature for feature in Feature if feature.need is Need.DEGRADABLE]


class Kernel(Runner):
    """The command on a kernel that lacks features."""

    lacks: tuple[Feature, ...] = ()

    def command(self, *args: str) -> list[str]:
        return [sys.executable, str(LACKING), ",".join(feature.label for feature in self.lacks), *args]

    def record(self) -> dict[str, Any]:
        """What was written down of t:1."""
        found: dict[str, Any] = json.loads((self.home / ".local/state/sandboxrun/runs/t:1.json").read_text())
        return found


@pytest.fixture
def kernel(redis_url: str, tmp_path: Path) -> Kernel:
    home = tmp_path / "home"
    home.mkdir()
    return Kernel(redis_url, home)


@pytest.mark.parametrize("feature", [f for f in Feature if f.need is not Need.SECOND_WALL], ids=lambda f: f.label)
def test_what_is_needed_is_named_with_its_version_and_nothing_runs(
    kernel: Kernel, local: Local, feature: Feature
) -> None:
    local("print('ran')")
    kernel.lacks = (feature,)
    done = kernel("t", "1")
    assert (done.code, done.out) == (71, "")
    since = f"Linux {feature.kernel} or newer is needed" if feature.kernel else "another machine is needed"
    assert done.err.startswith(f"error: this kernel lacks {feature.label} ({feature.what}): {since}")
    assert len(done.err.splitlines()) == 1
    assert (f"--allow-degraded={feature.label}" in done.err) == (feature in DEGRADABLE)
    assert not (kernel.home / ".local/state/sandboxrun/runs").exists()


@pytest.mark.parametrize("feature", [f for f in Feature if f.need is not Need.DEGRADABLE], ids=lambda f: f.label)
@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
def test_only_what_can_be_forgone_may_be_named(kernel: Kernel, local: Local, feature: Feature, there: bool) -> None:
    local("print('ran')")
    kernel.lacks = () if there else (feature,)
    done = kernel("t", "1", f"--allow-degraded={feature.label}")
    assert (done.code, done.out) == (78, "")
    assert (
        done.err
        == f"error: --allow-degraded has {feature.label!r}: expected one of landlock-truncate, redis-acl, redis-password\n"
    )


@pytest.mark.parametrize("name", ["nonsense", "Landlock-Truncate", "landlock-truncate,nonsense", "*", "\x1b[2J"])
def test_an_unknown_name_is_one_line(kernel: Kernel, local: Local, name: str) -> None:
    local("print('ran')")
    done = kernel("t", "1", f"--allow-degraded={name}")
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith("error: --allow-degraded has '")
    assert len(done.err.splitlines()) == 1
    assert "\x1b" not in done.err


@pytest.mark.parametrize("feature", DEGRADABLE, ids=lambda f: f.label)
def test_what_is_forgone_by_name_is_said_and_recorded(kernel: Kernel, local: Local, feature: Feature) -> None:
    local("print('ran')")
    kernel.lacks = (feature,)
    done = kernel("t", "1", "--quiet", f"--allow-degraded={feature.label}")
    assert (done.code, done.out) == (0, "ran\n")
    assert done.err == f"warning: degraded: without {feature.label}, {feature.what} does not hold\n"
    assert kernel.record()["degraded"] == [feature.label]
    # A kernel that has it is not made weaker, and nothing is said.
    kernel.lacks = ()
    done = kernel("t", "1", "--quiet", f"--allow-degraded={feature.label}")
    assert (done.code, done.out, done.err) == (0, "ran\n", "")
    assert kernel.record()["degraded"] == []


# What came with which Landlock ABI; with the seventh came nothing that is used here.
CAME = {
    1: (Feature.LANDLOCK,),
    2: (Feature.LANDLOCK_REFER,),
    3: (Feature.LANDLOCK_TRUNCATE,),
    4: (Feature.LANDLOCK_TCP,),
    5: (Feature.LANDLOCK_IOCTL,),
    6: (Feature.LANDLOCK_SCOPE,),
    7: (),
}
ATTEMPTS = """
import errno, json, os, socket, sys
V = json.loads({variables!r})
def connect():
    with socket.create_connection(("127.0.0.1", V["port"])) as s:
        return s.recv(5).decode()
def moved():
    os.mkdir("one"), os.mkdir("other"), open("one/file", "w").close()
    os.rename("one/file", "other/file")
acts = {{
    "TCP": connect,
    "signal": lambda: os.kill(V["pid"], 15),
    "abstract socket": lambda: socket.socket(socket.AF_UNIX),
    "read": lambda: open(V["secret"]).read(),
    "write": lambda: open(V["granted"], "w"),
    "made": lambda: open(V["beside"], "x"),
    "emptied": lambda: os.truncate(V["granted"], 0),
    "moved": moved,
}}
found = {{}}
for name, act in acts.items():
    try:
        act()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


@pytest.mark.parametrize("abi", range(8))
def test_with_each_landlock_what_is_promised_holds_or_nothing_runs(
    kernel: Kernel, local: Local, listener: Listener, tmp_path: Path, abi: int
) -> None:
    granted, secret = tmp_path / "granted", tmp_path / "secret"
    granted.write_text("read only")
    secret.write_text("secret")
    kernel.lacks = tuple(feature for since, features in CAME.items() if since > abi for feature in features)
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            variables = {"port": listener.port, "pid": victim.pid, "secret": str(secret), "granted": str(granted)}
            variables["beside"] = str(tmp_path / "beside")
            local(ATTEMPTS.format(variables=json.dumps(variables)), allowRead=str(granted))
            done = kernel("t", "1", "--quiet")
            assert (done.code == 0) is (abi >= 3), done.err
            if abi < 3:
                assert (done.code, done.out) == (71, "")
                done = kernel("t", "1", "--quiet", "--allow-degraded=landlock-truncate")
            if abi == 0:
                assert (done.code, done.out) == (71, "")
                assert "this kernel lacks landlock (files): Linux 5.13 or newer is needed" in done.err
                return
            assert victim.poll() is None
        finally:
            victim.send_signal(signal.SIGKILL)
    assert json.loads(done.out) == {
        "TCP": "EACCES",
        "signal": "EPERM",
        "abstract socket": "EPERM",
        "read": "EACCES",
        "write": "EACCES",
        "made": "EACCES",
        "emptied": "EACCES" if abi >= 3 else "done",
        "moved": "done" if abi >= 2 else "EXDEV",
    }
    assert arrived(listener) == 0
    assert secret.read_text() == "secret" and (granted.read_text() == "read only") is (abi >= 3)
    assert not (tmp_path / "beside").exists()
    assert kernel.record()["degraded"] == ([] if abi >= 3 else ["landlock-truncate"])
