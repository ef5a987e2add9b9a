"""A worker with packages, by the whole command: the policy bounds them, a new or changed one is asked, the cache knows its users.

The wheels are made here, and served by an index on loopback that the policy names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from arena import wait_for
from hints import hint_of, paste
from index import Index, serving
from raw_host import RawHost
from runner import ALLOW_ALL, Runner
from wheels import Wheel, lock_text, wheel

FIRST = wheel("first", "1.0", files={"first.py": "VALUE = 'first 1.0'\n"})
NEWER = wheel("first", "1.1", files={"first.py": "VALUE = 'first 1.1'\n"})
OTHER = wheel("first", "1.0", files={"first.py": "VALUE = 'another first 1.0'\n"})
SECOND = wheel("second", "2.0", files={"second.py": "VALUE = 'second 2.0'\n"})
CODE = "import first\nprint(first.VALUE)\n"

Serve = Callable[..., None]


@pytest.fixture
def index(run: Runner) -> Iterator[Index]:
    """The one that the operator's policy names."""
    with serving(FIRST, NEWER, SECOND) as found:
        run.set_policy(f'{ALLOW_ALL}index = "{found.url}"\n')
        run.env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
        yield found


@pytest.fixture
def serve(r: redis.Redis, host: RawHost) -> Serve:
    """Serve a version of a script with a lock of these wheels, and name it in the worker's hash."""

    def put(version: str, *wheels: Wheel, code: str = CODE) -> None:
        lock = lock_text(*wheels)
        block = (
            f'# dependencies = ["first"]\n# [tool.sandboxrun]\n# lock = "sha256:{hashlib.sha256(lock).hexdigest()}"\n'
        )
        host.files[f"/{version}/w.py"] = f"# /// script\n{block}# ///\n{code}"
        host.files[f"/{version}/requirements.lock"] = lock.decode()
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": version})

    return put


def record(run: Runner) -> dict[str, Any]:
    text = (run.home / ".local/state/sandboxrun/approved/t:1.json").read_text()
    found: dict[str, Any] = json.loads(text)["contents"]
    return found


def test_the_first_start_asks_nothing_and_records_the_packages(run: Runner, serve: Serve, index: Index) -> None:
    serve("v1.0.0", FIRST, SECOND)
    log = run.home / "audit.log"
    done = run("t", "1", "--audit", str(log))
    assert (done.code, done.out) == (0, "first 1.0\n"), done.err
    assert [package[:2] for package in record(run)["packages"]] == [["first", "1.0"], ["second", "2.0"]]
    [grant] = [json.loads(line) for line in log.read_text().splitlines() if '"grant"' in line]
    assert grant["details"]["packages"] == ["first 1.0", "second 2.0"]
    assert grant["details"]["lock"] == hashlib.sha256(lock_text(FIRST, SECOND)).hexdigest()
    text = run("show", "t", "1").out
    assert "\n  packages       first 1.0, second 2.0\n" in text
    plan = run("show", "t", "1", "--plan").out
    assert "first 1.0\n" in plan and "second 2.0\n" in plan


@pytest.mark.parametrize(
    ("wheels", "line"),
    [
        ((FIRST, SECOND), "package second 2.0"),
        ((NEWER,), "package first 1.1 (was 1.0)"),
        ((OTHER,), "package first 1.0 (other wheels than before)"),
    ],
)
def test_a_new_or_changed_package_is_asked_before_it_is_fetched(
    run: Runner, serve: Serve, index: Index, wheels: tuple[Wheel, ...], line: str
) -> None:
    serve("v1.0.0", FIRST)
    assert run("t", "1").out == "first 1.0\n"
    asked = list(index.requests)
    serve("v1.1.0", *wheels)
    done = run("t", "1")
    assert (done.code, done.out) == (77, "")
    assert f"asks for more than at its last run ({line}), and there is no terminal to ask on" in done.err
    assert index.requests == asked  # what was not approved is not even downloaded
    assert run("diff", "t", "1").out == f"  + {line}\n"
    found = json.loads(run("diff", "t", "1", "--json").out)
    assert [package["name"] for package in found["script"]["packages"] if package["new"]] == [line.split()[1]]
    marked = line.removeprefix("package ")
    assert f"+ {marked}\n" in run("show", "t", "1").out
    index.publish(*wheels)
    assert hint_of(done.err) == "sandboxrun approve t 1"
    followed = paste(hint_of(done.err), run.env, run.home)
    assert (followed.returncode, followed.stdout) == (0, f"  + {line}\napproved\n")
    assert run("t", "1").code == 0
    assert run("diff", "t", "1").out == "t:1:h asks for nothing more than it was allowed\n"


def test_a_removed_package_asks_nothing_and_is_asked_when_it_comes_back(
    run: Runner, serve: Serve, index: Index
) -> None:
    serve("v1.0.0", FIRST, SECOND)
    assert run("t", "1").code == 0
    serve("v1.1.0", FIRST)
    assert run("t", "1").out == "first 1.0\n"
    serve("v1.2.0", FIRST, SECOND)
    assert "(package second 2.0)" in run("t", "1").err
    assert run("t", "1", "--yes").out == "first 1.0\n"


def test_a_package_beyond_the_policy_is_refused_and_the_hint_allows_it(run: Runner, serve: Serve, index: Index) -> None:
    policy = run.policy.read_text()
    run.set_policy(policy + 'packages = ["second"]\n')
    serve("v1.0.0", FIRST, SECOND)
    for args in (("t", "1"), ("t", "1", "--yes"), ("approve", "t", "1"), ("diff", "t", "1")):
        done = run(*args)
        line = len(policy.splitlines()) + 1
        if args[0] == "t":
            message = f"the script of t:1:h needs the package 'first', which {run.policy}:{line} does not allow\n"
            assert (done.code, done.out) == (77, "")
            assert message in done.err
        else:
            assert (done.code, done.out) == (77, "")
    assert index.requests == []
    assert paste(hint_of(run("t", "1").err), run.env, run.home).returncode == 0
    assert run("t", "1").out == "first 1.0\n"


def test_packages_larger_than_the_policy_allows_are_not_installed(run: Runner, serve: Serve, index: Index) -> None:
    large = wheel("first", "3.0", files={"first.py": f"VALUE = 'large'\n# {'x' * (3 << 20)}\n"})
    index.publish(large)
    run.set_policy(run.policy.read_text() + 'packages-size = "1M"\n')
    serve("v1.0.0", large)
    done = run("t", "1")
    assert done.code != 0 and done.out == ""
    run.set_policy(run.policy.read_text().replace('"1M"', '"100M"'))
    assert run("t", "1").out == "large\n"


def test_dependencies_without_a_lock_are_resolved_once_and_each_package_is_asked(
    run: Runner, serve: Serve, index: Index, host: RawHost
) -> None:
    run.set_policy(run.policy.read_text() + "unlocked = true\n")
    serve("main", FIRST)
    host.files["/main/w.py"] = "print('without')\n"
    assert run("t", "1").out == "without\n"
    host.files["/main/w.py"] = f'# /// script\n# dependencies = ["first"]\n# ///\n{CODE}'
    done = run("t", "1")
    assert (done.code, done.out) == (77, ""), done.err
    assert "(package first 1.1, and 1 more), and there is no terminal to ask on" in done.err
    assert run("approve", "t", "1").out == ("  + package first 1.1\n  + dependency first, without a lock\napproved\n")
    assert "\n  lock           none: no digest pins these packages\n" in run("show", "t", "1").out
    assert run("t", "1").out == "first 1.1\n"


def test_the_cache_knows_environments_and_keeps_what_runs(
    r: redis.Redis, run: Runner, serve: Serve, index: Index
) -> None:
    serve("v1.0.0", FIRST, SECOND, code="import time\ntime.sleep(600)\n")
    cache = run.home / ".cache/sandboxrun"
    with run.start("t", "1"):
        wait_for(lambda: r.hexists("t:1:h", "pid"), seconds=60)
        [environment] = json.loads(run("cache", "--json").out)["environments"]
        assert environment["packages"] == ["first 1.0", "second 2.0"]
        assert environment["workers"] == [{"worker": "t:1", "runs": True}]
        path = Path(environment["path"])
        assert run("cache", "--clean").err == f"warning: {path} was kept: t 1 uses it\n"
        assert run("cache", "--verify").code == 0
        assert run("stop", "t", "1").code == 0
    wait_for(lambda: run("cache", "--clean").err == "")
    assert [file for file in cache.rglob("*") if file.suffix in (".whl", ".seal", ".files")] == []
    serve("v1.0.0", FIRST, SECOND)
    assert run("t", "1", "--reload").out == "first 1.0\n"


def test_a_changed_file_of_an_environment_is_found_by_verify(run: Runner, serve: Serve, index: Index) -> None:
    serve("v1.0.0", FIRST)
    assert run("t", "1").code == 0
    assert run("cache", "--verify").code == 0
    (run.home / ".local/state/sandboxrun/runs/t:1.json").unlink()
    [environment] = json.loads(run("cache", "--json").out)["environments"]
    assert (environment["packages"], environment["workers"]) == (["first 1.0"], [])
    [large] = json.loads(run("cache", "--json").out)["wheels"]
    for path in (Path(environment["path"]) / "first.py", Path(large["path"])):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes() + b"\n")
    done = run("cache", "--verify")
    assert done.code == 65
    assert f"environment {environment['path']} " in done.out and f"wheel {large['path']} does not have" in done.out
    assert paste(hint_of(done.err), run.env, run.home).returncode == 0
    assert run("cache", "--verify").code == 0
    assert run("t", "1").out == "first 1.0\n"
