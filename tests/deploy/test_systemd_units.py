"""systemd takes the units as they stand, and they name what exists here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sandboxrun import errors

UNITS = Path(__file__).parents[2] / "deploy/systemd"
NAMES = ("sandboxrun-agent.service", "sandboxrun@.service")
PROGRAM = "/opt/sandboxrun/bin/sandboxrun"


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (UNITS / name).read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_systemd_verifies_the_unit(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd is installed here")
    unit = tmp_path / name
    unit.write_text((UNITS / name).read_text().replace(PROGRAM, "/bin/true"))  # which is installed
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_allows_what_the_sandbox_is_made_of(name: str) -> None:
    """Found by running `sandboxrun check` under each option: docs/production.md."""
    unit = settings(name)
    allowed = " ".join(unit["SystemCallFilter"]).split()
    calls = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp", "pidfd_getfd"}
    assert calls <= {*allowed}
    # The first two deny openat2(2), by which grants are opened.
    forbidden = {"RestrictSUIDSGID", "DynamicUser", "ProtectControlGroups", "MemoryDenyWriteExecute"}
    assert not forbidden & unit.keys()
    assert unit["NoNewPrivileges"] == ["yes"] and unit["CapabilityBoundingSet"] == [""]


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_not_restarted_for_what_another_start_would_say_again(name: str) -> None:
    codes = {
        each.exit_code for each in (errors.UsageError, errors.IntegrityError, errors.PolicyError, errors.ConfigError)
    }
    assert set(map(int, settings(name)["RestartPreventExitStatus"][0].split())) == codes


def test_the_template_gives_type_and_id_to_the_command() -> None:
    (start,) = settings("sandboxrun@.service")["ExecStart"]
    script = re.fullmatch(r"/bin/sh -c '(.*)' sh %I", start)
    assert script is not None
    command = script[1].replace("$$", "$").replace(f"exec {PROGRAM}", "printf '%s|'")
    for instance, arguments in (("bot:1", "--wait|bot|1|"), ("demo-worker:a.b-c", "--wait|demo-worker|a.b-c|")):
        done = subprocess.run(["sh", "-c", command, "sh", instance], capture_output=True, text=True, timeout=60)
        assert done.stdout == arguments
