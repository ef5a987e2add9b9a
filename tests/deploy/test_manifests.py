"""Dockerfile, Compose file and pod manifest give the container what it needs, and no more. No engine runs them here."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
PARSE = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
CODE = re.compile(r"^(?!\s*#)\s*(\S.*)$", re.MULTILINE)


def parsed(name: str) -> Any:
    """The document, read by the system's Python, which may have PyYAML."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", PARSE],
        input=(DEPLOY / name).read_text(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "No module named 'yaml'" in done.stderr:
        pytest.skip("/usr/bin/python3 has no PyYAML")
    (document,) = json.loads(done.stdout)
    return document


def test_the_image_runs_as_an_ordinary_user_and_has_no_build_tools() -> None:
    lines = CODE.findall((DEPLOY / "Dockerfile").read_text())
    final = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert [line for line in final if line.startswith("USER ")] == ["USER 10001:10001"]
    assert not re.search(r"\b(gcc|build-essential|python3-dev|git)\b", "\n".join(final))
    assert all(not line.startswith("FROM ") or ":" in line.split()[1] for line in lines)  # an image of a version
    assert any(line.startswith("ENTRYPOINT [") for line in final)


def test_compose_names_the_profile_and_confines_the_agent() -> None:
    agent = parsed("compose.yaml")["services"]["agent"]
    (profile,) = (each.partition("=")[2] for each in agent["security_opt"] if each.startswith("seccomp="))
    assert (DEPLOY / profile).is_file()
    assert (agent["read_only"], agent["cap_drop"]) == (True, ["ALL"])
    assert (DEPLOY / agent["build"]["context"] / agent["build"]["dockerfile"]).is_file()
    assert {each.rpartition(":")[2] for each in agent["volumes"]} == {home()}


def test_the_pod_is_what_the_restricted_standard_allows() -> None:
    """All of it but the profile, which has to be Localhost: Pod Security Standards, "Restricted"."""
    pod = parsed("kubernetes/agent.yaml")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "Localhost"
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounted.keys() == {each["name"] for each in pod["volumes"]}
    assert mounted["home"] == home()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == ["sandboxrun", "health"]


def test_the_scaler_reads_a_stream_of_this_deployment() -> None:
    deployment, scaler = parsed("kubernetes/agent.yaml"), parsed("kubernetes/scale.yaml")["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (trigger,) = scaler["triggers"]
    assert trigger["type"] == "redis-streams"
    assert (trigger["metadata"]["stream"], trigger["metadata"]["consumerGroup"]) == ("demo-worker:req:x", "worker")
    names = {each["name"] for each in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert trigger["metadata"]["passwordFromEnv"] in names


def home() -> str:
    """HOME in the image: all that is written lies below it."""
    found = re.search(r"^ENV .*\bHOME=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]
