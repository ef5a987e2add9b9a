"""What a script brings along, in `show`, `diff`, `approve` and the policy: its files, and the packages that it asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from raw_host import RawHost
from runner import ALLOW_ALL, Runner

FILES = {"helpers.py": "NAME = 'helpers'\n", "pkg/__init__.py": "", "page.html": "<p>hi</p>\n"}
UNLOCKED = ALLOW_ALL + "unlocked = true\n"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def block(files: dict[str, str], dependencies: tuple[str, ...] = (), lock: str = "") -> str:
    table = ", ".join(f'"{path}" = "sha256:{digest(text)}"' for path, text in files.items())
    lines = [f"dependencies = {json.dumps(dependencies)}", "[tool.sandboxrun]", f"files = {{ {table} }}"]
    lines += [f'lock = "sha256:{lock}"'] if lock else []
    return "# /// script\n" + "".join(f"# {line}\n" for line in lines) + "# ///\nprint('ran')\n"


Serve = Callable[..., None]


@pytest.fixture
def serve(r: redis.Redis, host: RawHost) -> Serve:
    """Serve a version of a script with its files, and name it in the worker's hash."""

    def put(version: str, files: dict[str, str] = FILES, *dependencies: str, lock: str = "") -> None:
        host.files[f"/{version}/w.py"] = block(files, dependencies, lock)
        host.files.update({f"/{version}/{path}": text for path, text in files.items()})
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": version})

    return put


def shown(run: Runner) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("show", "t", "1", "--json").out)
    return found


def record(run: Runner) -> dict[str, Any]:
    text = (run.home / ".local/state/sandboxrun/approved/t:1.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def test_files_are_shown_and_a_new_version_of_them_asks_nothing(run: Runner, serve: Serve) -> None:
    serve("v1.0.0")
    assert run("t", "1").out == "ran\n"
    assert record(run)["contents"]["files"] == {path: digest(text) for path, text in FILES.items()}
    text = run("show", "t", "1").out
    assert "\n  3 files        helpers.py, page.html, pkg/__init__.py\n" in text
    assert run("diff", "t", "1").out == "t:1:h asks for nothing more than it was allowed\n"
    serve("v1.1.0", FILES | {"helpers.py": "NAME = 'other'\n", "more.py": ""})
    assert run("diff", "t", "1").err == (
        "warning: the script of t:1:h was not fetched here yet, so its packages are not known\n"
    )
    assert run("t", "1").out == "ran\n"
    assert record(run)["contents"]["files"].keys() == {*FILES, "more.py"}


def test_the_plan_the_record_and_the_audit_log_have_them(run: Runner, serve: Serve) -> None:
    serve("v1.0.0")
    log = run.home / "audit.log"
    assert run("t", "1", "--audit", str(log)).out == "ran\n"
    plan = run("show", "t", "1", "--plan").out
    for path, text in FILES.items():
        assert f" {path} sha256 {digest(text)}\n" in plan
    [grant] = [json.loads(line) for line in log.read_text().splitlines() if '"grant"' in line]
    [ran] = [json.loads(path.read_text()) for path in (run.home / ".local/state/sandboxrun/runs").iterdir()]
    for found in (grant["details"], ran):
        assert (found["files"], found["packages"], found["lock"]) == (3, [], None)
    assert [path.partition("/")[0] for path in ran["uses"]] == ["trees"]
    assert "files=3" in run("audit", str(log), "--event", "grant").out


def test_diff_names_the_files_that_are_new_or_changed(run: Runner, serve: Serve, host: RawHost) -> None:
    serve("main")
    assert run("t", "1").code == 0
    serve("main", FILES | {"helpers.py": "NAME = 'other'\n", "more.py": ""}, "requests>=2")
    done = run("t", "1")  # fetched, and refused by the policy
    assert (done.code, done.out) == (77, "")
    run.set_policy(UNLOCKED)
    done = run("diff", "t", "1")
    assert done.out == "  + dependency requests>=2, without a lock\n  of 4 files, new or changed: helpers.py, more.py\n"
    found = json.loads(run("diff", "t", "1", "--json").out)
    assert found["grown"] == ["dependency requests>=2, without a lock"]
    assert {file["path"]: file["new"] for file in found["script"]["files"]} == {
        "helpers.py": True, "more.py": True, "page.html": False, "pkg/__init__.py": False,
    }  # fmt: skip
    assert "\n  4 files        + helpers.py, + more.py, page.html, pkg/__init__.py\n" in run("show", "t", "1").out


def test_dependencies_without_a_lock_are_refused_unless_the_policy_says_so(run: Runner, serve: Serve) -> None:
    serve("v1.0.0", {}, "requests>=2", "idna")
    done = run("t", "1")
    assert (done.code, done.out) == (77, "")
    assert "/v1.0.0/w.py has dependencies and no lock, so their code could change from day to day" in done.err
    assert "its author can pin them with sandboxrun lock\nhint: " in done.err
    assert "unlocked = true" in done.err
    assert shown(run)["policy"]["within"] is False
    assert [fault["exit_code"] for fault in shown(run)["faults"]][:1] == [77]
    assert run("approve", "t", "1").code == 77  # which agrees within the policy
    run.set_policy(ALLOW_ALL + "unlocked = false\n")
    assert f", which {run.policy}:10 does not allow" in run("t", "1").err


def test_before_the_first_fetch_nothing_is_known_and_a_new_dependency_is_asked_later(run: Runner, serve: Serve) -> None:
    serve("main", {})
    done = run("approve", "t", "1")
    assert (done.code, done.out.splitlines()[-1]) == (0, "approved")
    assert "the script of t:1:h was not fetched here yet, so its packages are not known" in done.err
    assert "contents" not in record(run)
    serve("main", {}, "requests")
    assert run("t", "1").code == 77  # fetched, and refused by the policy
    run.set_policy(UNLOCKED)
    assert shown(run)["agreed"]["grown"] == ["dependency requests, without a lock"]
    done = run("approve", "t", "1")
    assert done.out == "  + dependency requests, without a lock\napproved\n"
    assert done.err == "warning: the lock of t:1:h is not here yet, so its packages are not known\n"
    assert record(run)["contents"]["dependencies"] == ["requests"]
    assert run("diff", "t", "1").out == "t:1:h asks for nothing more than it was allowed\n"


def test_what_is_not_known_here_stays_approved(run: Runner, serve: Serve, r: redis.Redis) -> None:
    run.set_policy(UNLOCKED)
    serve("v1.0.0")
    assert run("t", "1").code == 0
    before = record(run)["contents"]
    serve("v2.0.0")
    r.hset("t:1:h", "allowNet", "a.example")
    assert run("approve", "t", "1").out == "  + --allow-net a.example\napproved\n"
    assert record(run)["contents"] == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda contents: contents | {"files": []},
        lambda contents: contents | {"packages": [["requests"]]},
        lambda contents: contents | {"lock": "0"},
        lambda contents: [],
    ],
)
def test_a_record_damaged_by_hand_runs_and_approves_nothing(
    run: Runner, serve: Serve, damage: Callable[[dict[str, Any]], Any]
) -> None:
    serve("v1.0.0")
    assert run("t", "1").code == 0
    path = run.home / ".local/state/sandboxrun/approved/t:1.json"
    path.write_text(json.dumps(record(run) | {"contents": damage(record(run)["contents"])}))
    for args in (("t", "1"), ("t", "1", "--yes"), ("approve", "t", "1"), ("diff", "t", "1")):
        done = run(*args)
        assert (done.code, done.out) == (78, ""), args
        assert f"the record {path} of what a worker was allowed is damaged" in done.err


def test_a_hash_cannot_say_what_only_a_policy_may(r: redis.Redis, run: Runner, serve: Serve, host: RawHost) -> None:
    serve("v1.0.0", {}, "requests")
    r.hset("t:1:h", mapping={"unlocked": "true", "index": host.url, "packages": "*", "policy": UNLOCKED})
    done = run("t", "1")
    assert (done.code, "which the default policy does not allow" in done.err) == (77, True)
    r.hset("t:1:h", "options", f"--index-url={host.url}/simple")
    assert run("t", "1").code == 78
    assert [path for path, _ in host.requests] == ["/v1.0.0/w.py"]  # nobody asked for a package


def test_the_index_of_the_script_itself_counts_for_nothing(run: Runner, serve: Serve, host: RawHost) -> None:
    serve("v1.0.0", {}, "requests")
    tool = f'# [tool.uv]\n# index-url = "{host.url}/simple"\n# [tool.other]\n# unlocked = true\n# [tool.sandboxrun]\n'
    text = host.files["/v1.0.0/w.py"]
    assert isinstance(text, str)
    host.files["/v1.0.0/w.py"] = text.replace("# [tool.sandboxrun]\n", tool)
    assert run("t", "1").code == 77
    host.files["/v1.0.1/w.py"] = text.replace("# files", "# unlocked = true\n# files")
    done = run("set", "t", "1", "version=v1.0.1")
    assert (done.code, "has unlocked = 'True': expected one of the keys files, lock" in done.err) == (65, True)
    assert [path for path, _ in host.requests] == ["/v1.0.0/w.py", "/v1.0.1/w.py"]
