"""Each hint of the sandbox is pasted in the situation that shows it, and the command works then."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from hints import hint_of, is_of, paste, templates
from runner import SECONDS, Done, Runner

import sandboxrun

Local = Callable[..., Path]
SCRIPT = "print('ran')"
ROOT = Path(__file__).parents[3]


class Desk:
    """What a situation is made of."""

    def __init__(self, r: redis.Redis, run: Runner, local: Local, folder: Path) -> None:
        self.r, self.run, self.local, self.folder = r, run, local, folder
        self.ends = contextlib.ExitStack()

    def start(self) -> Done:
        return self.run("t", "1", "--yes")


def _no_folder(desk: Desk) -> Callable[[], Done]:
    desk.local(SCRIPT, allowRead=f"{desk.folder}/my data/deep")
    return desk.start


def _no_file(desk: Desk) -> Callable[[], Done]:
    desk.local(SCRIPT, allowWrite=f"{desk.folder}/my data/notes.txt")
    return desk.start


def _code_in_a_list(desk: Desk) -> Callable[[], Done]:
    (desk.folder / "data").mkdir()
    desk.local(SCRIPT, allowWrite=f"{desk.folder}/data,{Path(sys.prefix)}")
    return desk.start


def _taken_port(desk: Desk) -> Callable[[], Done]:
    taken = desk.ends.enter_context(socket.create_server(("127.0.0.1", 0)))
    desk.local(SCRIPT)
    return lambda: desk.run("t", "1", f"--inspect={taken.getsockname()[1]}")


def _no_package(desk: Desk) -> Callable[[], Done]:
    """In an environment of its own, with an index that is a folder."""
    name = "absent_by_design"
    with zipfile.ZipFile(desk.folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "x = 1\n")
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    subprocess.run([sys.executable, "-m", "venv", desk.folder / "env"], check=True, timeout=SECONDS)
    (site,) = (desk.folder / "env/lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([str(Path(sandboxrun.__file__).parents[1]), *others]))
    desk.run.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(desk.folder)}
    desk.local(f"import {name}\nprint('ran')")

    def start() -> Done:
        command: list[str | Path] = [desk.folder / "env/bin/python", "-m", "sandboxrun", "t", "1"]
        return _done(desk, command)

    return start


def _done(desk: Desk, command: list[str | Path]) -> Done:
    done = subprocess.run(
        command,
        env=desk.run.env,
        cwd=desk.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def _default_profile(desk: Desk) -> Callable[[], Done]:
    """In a container with Docker's profile; with the pasted one, if it is there."""
    desk.local(SCRIPT)

    def start() -> Done:
        ours = desk.run.home / "seccomp.json"
        profile = ours if ours.exists() else ROOT / "tests/data/seccomp/docker-26.1.5.json"
        tool = ROOT / "tests/support/container_profile.py"
        command: list[str | Path] = [sys.executable, str(tool), str(profile), *desk.run.command("t", "1", "--yes")]
        return _done(desk, command)

    return start


SITUATIONS: dict[str, Callable[[Desk], Callable[[], Done]]] = {
    "mkdir -p {}": _no_folder,
    "install -D -m 600 /dev/null {}": _no_file,
    "sandboxrun set {} {} {}={}": _code_in_a_list,
    "sandboxrun {} {} --inspect={}:0": _taken_port,
    "{} -m pip install {}": _no_package,
    "sandboxrun check --seccomp-profile >seccomp.json": _default_profile,
}
ELSEWHERE = {
    "SystemCallFilter={}": "needs a systemd unit whose filter denies a call",
    "sudo sysctl -w kernel.yama.ptrace_scope=1": "needs root, and a kernel with Yama",
    "sudo apt-get install -y libseccomp2": "needs root, and a machine without libseccomp",
    "sudo dnf install -y libseccomp": "needs root, and Fedora or a system like it",
    "brew install lima\nlimactl start --tty=false --name=sandboxrun template://ubuntu-24.04\nlimactl shell sandboxrun": "needs macOS",
    "wsl --install -d Ubuntu-24.04": "needs Windows",
    "pipx inject sandboxrun {}": "needs an installation by pipx",
    "uv tool install sandboxrun {}": "needs an installation by uv tool",
    "uv pip install --python {} {}": "needs uv, and an environment without pip",
}


@pytest.mark.parametrize("template", SITUATIONS)
def test_what_the_hint_says_ends_the_trouble(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path, template: str
) -> None:
    desk = Desk(r, run, local, tmp_path)
    with desk.ends:
        _follow(template, SITUATIONS[template](desk), run)


def _follow(template: str, start: Callable[[], Done], run: Runner) -> None:
    refused = start()
    assert refused.code != 0 and "ran" not in refused.out, refused
    hint = hint_of(refused.err)
    assert is_of(template, hint), hint
    pasted = paste(hint, run.env, run.home)
    assert pasted.returncode == 0, pasted
    if "--inspect" in template:  # the hint is the start itself, with another port
        assert pasted.stdout == "ran\n", pasted
    else:
        again = start()
        assert (again.code, again.out) == (0, "ran\n"), again.err


def test_each_hint_of_the_sandbox_is_pasted_or_listed() -> None:
    assert {*templates("sandbox"), *templates("installation.py")} == {*SITUATIONS, *ELSEWHERE}


def test_no_hint_stores_what_the_command_line_grants(run: Runner, local: Local, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    local(SCRIPT, allowWrite=f"{tmp_path}/data")
    refused = run("t", "1", f"--allow-write={sys.prefix}")
    assert refused.code == 78 and "change code that is run later" in refused.err
    assert "hint: " not in refused.err


def test_no_hint_grants_the_target_of_a_symlink_that_a_worker_may_have_made(
    run: Runner, local: Local, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to("/etc/shadow")
    local(SCRIPT, allowRead=f"{tmp_path}/data/link")
    refused = run("t", "1", "--yes")
    assert refused.code == 78 and "a worker may have made it" in refused.err
    assert "hint: " not in refused.err
