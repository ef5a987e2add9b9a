"""Under a container engine's default seccomp profile nothing runs and the way out is named; under ours all of it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sandboxrun.sandbox import surroundings

ROOT = Path(__file__).parents[2]
OURS = ROOT / "deploy/seccomp.json"
DOCKER = ROOT / "tests/data/seccomp/docker-26.1.5.json"
CONTAINERD = ROOT / "tests/data/seccomp/containerd-1.7.24.json"
SECONDS = 100
HINT = "hint: sandboxrun check --seccomp-profile >seccomp.json"


def allowed(path: Path) -> dict[str, list[Any]]:
    """The rules of each system call."""
    found: dict[str, list[Any]] = {}
    for rule in json.loads(path.read_text())["syscalls"]:
        for name in rule["names"]:
            found.setdefault(name, []).append({key: value for key, value in rule.items() if key != "names"})
    return found


def contained(profile: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The command under the profile, without capabilities, with a read-only root; `folder` is a tmpfs."""
    folder.mkdir(exist_ok=True)
    tool = [sys.executable, str(ROOT / "tests/support/container_profile.py"), "--read-only", "--tmpfs", str(folder)]
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | dict.fromkeys(
        ("HOME", "TMPDIR", "SANDBOXRUN_TESTS_FOLDER"), str(folder)
    )
    return subprocess.run(
        [*tool, str(profile), *command], env=env, cwd="/", capture_output=True, text=True, timeout=SECONDS
    )


@pytest.fixture
def sandboxrun() -> str:
    return str(Path(sys.executable).with_name("sandboxrun"))


def test_ours_is_dockers_default_and_one_call() -> None:
    ours, docker = allowed(OURS), allowed(DOCKER)
    assert ours.pop("pidfd_getfd") == [{"action": "SCMP_ACT_ALLOW"}]
    assert ours == docker
    heads = [{k: v for k, v in json.loads(path.read_text()).items() if k != "syscalls"} for path in (OURS, DOCKER)]
    assert heads[0] == heads[1]


def test_ours_is_made_by_its_script_and_is_in_the_wheel(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'deploy'); import make_seccomp as made\n"
        f"made.FILES = [Path({str(tmp_path / 'made')!r})]; made.main()"
    )
    subprocess.run([sys.executable, "-c", code, str(DOCKER)], cwd=ROOT, check=True, timeout=SECONDS)
    assert (tmp_path / "made").read_bytes() == OURS.read_bytes()
    assert (ROOT / "sandboxrun/sandbox/selftest/seccomp.json").read_bytes() == OURS.read_bytes()


def test_neither_default_allows_the_call() -> None:
    docker, containerd = allowed(DOCKER), allowed(CONTAINERD)
    assert "pidfd_getfd" not in docker | containerd
    assert {name for name in containerd if name not in docker} == {
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
    }


def test_the_command_prints_the_profile(sandboxrun: str, tmp_path: Path) -> None:
    printed = contained(DOCKER, tmp_path / "home", sandboxrun, "check", "--seccomp-profile")
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, OURS.read_text(), "")


@pytest.mark.parametrize("profile", [DOCKER, CONTAINERD], ids=lambda path: path.stem)
def test_under_a_default_profile_one_line_says_what_is_missing(sandboxrun: str, tmp_path: Path, profile: Path) -> None:
    told = "the seccomp profile of this container denies pidfd_getfd: start it with --security-opt seccomp=seccomp.json"
    checked = contained(profile, tmp_path / "home", sandboxrun, "check")
    assert checked.returncode == 71, checked
    *_, line, hint = checked.stdout.splitlines()
    assert line.startswith(f"The sandbox cannot be made here: {told}")
    assert hint == HINT
    started = contained(profile, tmp_path / "home", sandboxrun, "t", "1", "--redis", "redis://127.0.0.1:1")
    assert started.returncode == 71, started
    error, hint = started.stderr.splitlines()
    assert (error.startswith(f"error: {told}"), hint) == (True, HINT)


def test_under_ours_the_sandbox_holds_without_capabilities_and_with_a_read_only_root(
    sandboxrun: str, tmp_path: Path
) -> None:
    done = contained(OURS, tmp_path / "home", sandboxrun, "check", "--json")
    report = json.loads(done.stdout)
    assert (report["error"], report["holds"], done.returncode) == (None, True, 0), done
    # What a container refuses to everybody; all else is shown there, too.
    hidden = {row["name"] for row in report["protections"] if row["status"] == "not shown"}
    assert hidden <= {"io_uring", "user_namespace", "keyring", "trace"}


def test_under_ours_a_worker_runs_and_under_the_default_none_does(tmp_path: Path) -> None:
    """A worker that calls, is refused, and reads its own files: the command with all it does, on a tmpfs."""
    worker = "import socket\\ntry:\\n    socket.create_connection(('127.0.0.1', 9))\\nexcept PermissionError:\\n    print('refused')\\n"
    script = f"""
set -e
mkdir -p "$HOME/worker" "$HOME/.config/sandboxrun"
printf "{worker}" >"$HOME/worker/worker.py"
printf '[worker."*"]\\nopen-redis = true\\n' >"$HOME/.config/sandboxrun/policy.toml"
exec {sys.executable} -c '
import subprocess, sys, os, redis
from sandboxrun.redis import embedded
with embedded.server() as url, redis.Redis.from_url(url) as r:
    r.hset("t:1:h", mapping={{"url": os.environ["HOME"] + "/worker", "version": "local"}})
    sys.exit(subprocess.run([sys.executable, "-m", "sandboxrun", "t", "1", "--yes"],
        env=os.environ | {{"REDIS_URL": url}}, stdin=subprocess.DEVNULL).returncode)
'
"""
    done = contained(OURS, tmp_path / "home", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done
    denied = contained(DOCKER, tmp_path / "home", "sh", "-c", script)
    assert (denied.returncode, denied.stdout) == (71, ""), denied


ATTACKS = (
    "test_processes.py::test_no_program_and_no_process_is_started",
    "test_processes.py::test_another_process_is_not_changed_or_ended",
    "test_leaks.py::test_nothing_is_learnt_of_another_process",
)


def test_under_ours_attacks_fail_as_they_do_outside() -> None:
    """A part of tests/kernel; docs/production.md says when all of it was run so."""
    folder = Path(tempfile.gettempdir(), "c")  # a short name: machine.py
    attacks = [str(ROOT / "tests/kernel" / name) for name in ATTACKS]
    done = contained(OURS, folder, sys.executable, "-m", "pytest", "-q", "--rootdir", str(ROOT), *attacks)
    folder.rmdir()
    assert done.returncode == 0, done.stdout  # what the profile denies to everybody is skipped
    assert int(done.stdout.splitlines()[-1].split(" passed")[0]) > 80, done.stdout


@pytest.mark.parametrize(
    ("engine", "files", "environ"),
    [
        ("Kubernetes", {}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
        ("Docker", {".dockerenv": ""}, {}),
        ("Podman", {"run/.containerenv": ""}, {}),
        ("Docker", {"proc/self/cgroup": "0::/docker/0123\n"}, {}),
        ("Kubernetes", {"proc/self/cgroup": "0::/kubepods.slice/pod1/cri-containerd-2.scope\n"}, {}),
        (
            "containerd",
            {"proc/self/mountinfo": "1 2 0:30 / / rw - overlay overlay rw,upperdir=/var/lib/containerd/1/fs\n"},
            {},
        ),
        ("", {"proc/self/cgroup": "0::/system.slice/docker.service\n"}, {}),
        ("", {"proc/self/mountinfo": "1 2 8:1 / / rw - ext4 /dev/sda1 rw\n3 1 0:9 / /x rw - overlay /docker rw\n"}, {}),
        ("", {}, {}),
    ],
)
def test_the_engine_is_found(tmp_path: Path, engine: str, files: dict[str, str], environ: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert surroundings.container(f"{tmp_path}/", environ) == engine


def test_a_pod_and_a_unit_are_told_what_they_can_write() -> None:
    pod = surroundings.refusal("pidfd_getfd", surroundings.KUBERNETES, is_unit=False)
    assert "write seccompProfile: {type: Localhost, localhostProfile: seccomp.json} into the pod" in str(pod)
    unit = surroundings.refusal("pidfd_getfd", "", is_unit=True)
    assert "SystemCallFilter= of this systemd unit" in str(unit)
    assert unit.hint == ("SystemCallFilter=pidfd_getfd",)
