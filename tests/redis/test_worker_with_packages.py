"""Workers with files and packages, from `sandboxrun lock` to the reply, over a package index and a raw host on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from index import Index, serving
from raw_host import RawHost, body
from runner import Done, Runner
from wheels import pylock_text, wheel

from sandboxrun import client

HANDLER = "from sandboxrun import worker\nworker.handler(lambda request: {'text': answer()})\nworker.run()\n"


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        yield found


@pytest.fixture
def run(redis_url: str, tmp_path: Path, index: Index) -> Runner:
    return machine(redis_url, tmp_path / "home", index)


def machine(redis_url: str, home: Path, index: Index) -> Runner:
    home.mkdir()
    run = Runner(redis_url, home)
    run.env |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0"}
    return run


def script(code: str, *dependencies: str, **own: str) -> str:
    listed = ", ".join(f'"{name}"' for name in dependencies)
    table = "".join(f'# {name} = "{value}"\n' for name, value in own.items())
    return f"# /// script\n# dependencies = [{listed}]\n# [tool.sandboxrun]\n{table}# ///\n{code}"


def local(r: redis.Redis, folder: Path, source: str) -> Path:
    folder.mkdir()
    (folder / "worker.py").write_text(source)
    r.hset("t:1:h", mapping={"url": str(folder), "version": "local", "requestLimit": "1"})
    return folder


def publish(r: redis.Redis, host: RawHost, folder: Path, version: str = "v1.0.0") -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            host.files[f"/{version}/{file.relative_to(folder)}"] = body(file.read_bytes())
    url = host.url + "/{version}/worker.py"
    r.hset("t:1:h", mapping={"url": url, "version": version, "requestLimit": "1"})


def ask(r: redis.Redis, run: Runner, *flags: str) -> tuple[Done, object]:
    """Run the worker for one request."""
    r.delete("t:req:x")  # of a run that was refused
    ref = client.send(r, "t", {}, now="x")
    done = run("t", "1", *flags)
    return done, (client.wait(r, ref, timeout_seconds=1) or {}).get("text") if done.code == 0 else None


def test_the_commands_of_the_document_make_a_worker_with_a_package(r: redis.Redis, run: Runner, index: Index) -> None:
    """docs/packages.md"""
    sizes = "def naturalsize(n, **_):\n    return f'{n} bytes'\n"
    index.publish(wheel("humanize", "4.9.0", {"humanize/__init__.py": sizes}))
    assert run("init", "--package", "greeter").code == 0
    assert run("lock", "greeter").out == "worker.py is current\n"
    assert run("lock", "greeter", "--check").code == 0
    r.hset("greeter:1:h", mapping={"url": str(run.home / "greeter"), "version": "local", "requestLimit": "1"})
    ref = client.send(r, "greeter", {"bytes": 5}, now="x")
    done = run("greeter", "1")
    assert done.code == 0, done.err
    assert (client.wait(r, ref, timeout_seconds=1) or {})["text"] == "5 bytes"
    (run.home / "greeter/words.py").write_text("def size(n):\n    return 'other'\n")
    assert run("lock", "greeter", "--check").code == 65


def test_a_spec_is_checked_by_our_validator_whatever_the_lock_has(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    """And the script imports its own."""
    index.publish(wheel("jsonschema-rs", "0.1", {"jsonschema_rs.py": "TEXT = 'its own'\n"}))
    code = "def answer():\n    import jsonschema_rs\n    return jsonschema_rs.TEXT\n" + HANDLER
    folder = local(r, tmp_path / "author", script(code, "jsonschema-rs"))
    (folder / "spec.json").write_text('{"type": "t", "request": {"required": ["n"]}}')
    assert run("lock", str(folder / "worker.py")).code == 0
    r.hset("t:1:h", "requestLimit", "2")
    refs = [client.send(r, "t", data, now="x") for data in ({}, {"n": 1})]
    done = run("--yes", "t", "1")
    refused, answered = (client.wait(r, ref, timeout_seconds=1) or {} for ref in refs)
    assert (refused.get("code"), answered.get("text")) == (400, "its own"), done.err


def test_a_worker_by_url_runs_the_bytes_that_its_author_locked(
    r: redis.Redis, run: Runner, redis_url: str, index: Index, host: RawHost, tmp_path: Path
) -> None:
    """On two machines, of which the second sees an index that has published a newer release and yanked the locked one."""
    old = wheel("alpha", "1.0", {"alpha.py": "TEXT = 'one'\n"})
    index.publish(old, wheel("beta", "1.0"))
    code = "import alpha, beta, parts\ndef answer():\n    return alpha.TEXT + parts.MORE\n" + HANDLER
    folder = local(r, tmp_path / "author", script(code, "alpha", "beta"))
    (folder / "parts.py").write_text("MORE = '!'\n")
    assert run("lock", str(folder / "worker.py"), "parts.py").code == 0
    publish(r, host, folder)
    done, text = ask(r, run)
    assert text == "one!", done.err
    index.publish(wheel("alpha", "2.0", {"alpha.py": "TEXT = 'two'\n"}))
    index.yank(old)
    other = machine(redis_url, tmp_path / "other", index)
    assert ask(r, other)[1] == "one!"
    assert contents(run) == contents(other)
    asked = len(index.requests), len(host.requests)
    host.close()
    assert ask(r, run, "--cached-only")[1] == "one!"
    assert len(index.requests) == asked[0]


def contents(run: Runner) -> dict[str, str]:
    """Digests of all files of trees and environments but compiled ones."""
    cache = run.home / ".cache/sandboxrun"
    return {
        str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in ("trees", "env")
        for file in cache.glob(f"{folder}/*/**/*")
        if file.is_file() and file.suffix != ".pyc"
    }


def test_a_script_by_url_without_a_lock_is_refused_unless_the_policy_takes_it(
    r: redis.Redis, run: Runner, index: Index, host: RawHost, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0"))
    code = "import alpha\ndef answer():\n    return alpha.VERSION\n" + HANDLER
    folder = local(r, tmp_path / "author", script(code, "alpha"))
    publish(r, host, folder)
    done, _ = ask(r, run)
    assert done.code == 77
    assert "has dependencies and no lock" in done.err
    assert index.requests == []
    text = run.policy.read_text()
    run.set_policy(text + "unlocked = true\n")
    done, answer = ask(r, run)
    assert answer == "1.0", done.err
    assert "has dependencies and no lock, so they were resolved now: alpha 1.0" in done.err
    index.publish(wheel("alpha", "2.0"))  # what was resolved first stays
    done, answer = ask(r, run)
    assert (answer, "resolved" in done.err) == ("1.0", False), done.err


def test_a_local_script_without_a_lock_is_resolved_once_and_says_so(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0"))
    code = "import alpha\ndef answer():\n    return alpha.VERSION\n" + HANDLER
    folder = local(r, tmp_path / "author", script(code, "alpha"))
    done, answer = ask(r, run)
    assert answer == "1.0", done.err
    assert "has dependencies and no lock, so they were resolved now: alpha 1.0" in done.err
    assert f"hint: sandboxrun lock {folder}" in done.err
    asked = len(index.requests)
    assert ask(r, run)[1] == "1.0"
    assert len(index.requests) == asked


def test_a_local_lock_that_lacks_a_dependency_is_said(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0"), wheel("beta", "1.0"))
    folder = local(r, tmp_path / "author", script("import alpha\n", "alpha"))
    assert run("lock", str(folder)).code == 0
    source = (folder / "worker.py").read_text()
    (folder / "worker.py").write_text(source.replace('"alpha"', '"alpha", "beta"'))
    done = run("t", "1")
    assert f"requirements.lock does not have beta, which {folder / 'worker.py'}:1 depends on" in done.err
    assert f"hint: sandboxrun lock {folder}" in done.err


def test_another_lock_than_the_scripts_is_refused(
    r: redis.Redis, run: Runner, index: Index, host: RawHost, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0"))
    folder = local(r, tmp_path / "author", script("import alpha\n", "alpha"))
    assert run("lock", str(folder)).code == 0
    lock = folder / "requirements.lock"
    lock.write_text(lock.read_text() + "\n")
    publish(r, host, folder)
    done = run("t", "1")
    assert done.code == 65
    assert f"{host.url}/v1.0.0/requirements.lock has sha256 " in done.err
    assert not list((run.home / ".cache/sandboxrun").glob("env/*/*"))


def test_the_scripts_own_version_of_what_the_sdk_needs_is_its_own_alone(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    """hiredis was imported before the script began; the loop goes on with that."""
    index.publish(wheel("hiredis", "99.0", {"hiredis/__init__.py": "__version__ = '99.0'\n"}))
    code = "import hiredis\ndef answer():\n    return hiredis.__version__\n" + HANDLER
    folder = local(r, tmp_path / "author", script(code, "hiredis"))
    assert run("lock", str(folder)).code == 0
    done, answer = ask(r, run)
    assert answer == "99.0", done.err


def test_a_package_hides_neither_pythons_modules_nor_the_scripts(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    planted = {
        "json.py": "raise SystemExit('planted')",
        "mine.py": "raise SystemExit('planted')",
        "x.pth": "import os; os._exit(9)\n",
    }
    index.publish(wheel("alpha", "1.0", {"alpha.py": "", "sitecustomize.py": "raise SystemExit('planted')", **planted}))
    code = "import alpha, json, mine\ndef answer():\n    return json.dumps(mine.X)\n" + HANDLER
    folder = local(r, tmp_path / "author", script(code, "alpha"))
    (folder / "mine.py").write_text("X = 1\n")
    assert run("lock", str(folder / "worker.py"), "mine.py").code == 0
    done, answer = ask(r, run)
    assert answer == "1", done.err


def test_the_index_of_the_policy_is_the_only_one_that_is_asked(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0"))
    with serving(wheel("alpha", "1.0")) as other:
        run.set_policy(run.policy.read_text() + f'index = "{other.url}"\n')
        code = "import alpha\ndef answer():\n    return alpha.VERSION\n" + HANDLER
        source = script(code, "alpha").replace("# [tool", f'# [tool.uv]\n# index-url = "{index.url}"\n# [tool')
        local(r, tmp_path / "author", source)
        done, answer = ask(r, run)
        assert answer == "1.0", done.err
        assert (index.requests, other.requests != []) == ([], True)


def test_packages_that_the_policy_does_not_list_are_refused_before_they_are_fetched(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0"))
    folder = local(r, tmp_path / "author", script("import alpha\n", "alpha"))
    assert run("lock", str(folder)).code == 0
    index.requests.clear()
    run.set_policy(run.policy.read_text() + 'packages = ["beta"]\n')
    done = run("t", "1")
    assert done.code == 77
    assert "needs the package 'alpha'" in done.err
    assert index.requests == []


def test_a_lock_without_dependencies_is_not_taken_for_nothing(
    r: redis.Redis, run: Runner, index: Index, host: RawHost, tmp_path: Path
) -> None:
    """The block may name a lock and no dependency; where the lock is not here yet, nobody says that it asks for nothing."""
    index.publish(wheel("alpha", "1.0"))
    folder = local(r, tmp_path / "author", script("import alpha\n", "alpha"))
    assert run("lock", str(folder)).code == 0
    source = (folder / "worker.py").read_text().replace('["alpha"]', "[]")
    (folder / "worker.py").write_text(source)
    lock = (folder / "requirements.lock").read_bytes()
    publish(r, host, folder)
    del host.files["/v1.0.0/requirements.lock"]
    assert run("t", "1").code == 69
    done = run("show", "t", "1", "--plan")
    assert (done.code, "the packages of t:1:h were not fetched here yet" in done.err) == (69, True)
    host.files["/v1.0.0/requirements.lock"] = body(lock)
    assert "the lock of t:1:h is not here yet, so its packages are not known" in run("diff", "t", "1").err
    assert run("t", "1").code == 0
    assert "alpha 1.0" in run("show", "t", "1").out


def test_the_plan_names_what_is_installed(r: redis.Redis, run: Runner, index: Index, tmp_path: Path) -> None:
    index.publish(wheel("alpha", "1.0"))
    folder = local(r, tmp_path / "author", script("import alpha\n", "alpha"))
    assert run("lock", str(folder)).code == 0
    done = run("show", "t", "1", "--plan", "--json")
    assert (done.code, "the packages of t:1:h were not fetched here yet" in done.err) == (69, True)
    assert run("t", "1").code == 0
    plan = json.loads(run("show", "t", "1", "--plan", "--json").out)
    assert plan["packages"]["installed"] == {"alpha": "1.0"}
    assert plan["packages"]["folder"] in plan["policy"]["read"]


def test_a_smaller_packages_size_holds_at_the_next_start(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    index.publish(wheel("alpha", "1.0", {"alpha.py": "", "data.txt": "x" * (2 << 20)}))
    folder = local(r, tmp_path / "author", script("import alpha\nanswer = lambda: 'ran'\n" + HANDLER, "alpha"))
    assert run("lock", str(folder)).code == 0
    text = run.policy.read_text()
    assert ask(r, run)[1] == "ran"
    run.set_policy(text + 'packages-size = "1M"\n')
    done, _ = ask(r, run)
    assert (done.code, "unpacked they have more than 1048576 bytes" in done.err) == (65, True), done
    run.set_policy(text + 'packages-size = "3M"\n')
    assert ask(r, run)[1] == "ran"


def test_a_policy_with_an_index_takes_no_wheel_by_url(
    r: redis.Redis, run: Runner, index: Index, tmp_path: Path
) -> None:
    alpha = wheel("alpha", "1.0")
    folder = local(r, tmp_path / "author", script("import alpha\nanswer = str\n" + HANDLER, "alpha"))
    (folder / "pylock.toml").write_bytes(pylock_text((alpha, f"https://127.0.0.2:1/x/{alpha.filename}")))
    text = run.policy.read_text()
    run.set_policy(f'{text}index = "{index.url}"\n')
    done, _ = ask(r, run)
    assert done.code == 77
    assert f"{folder}/pylock.toml names wheels by URL, and {run.policy}:" in done.err
    assert " has index without package-hosts\n" in done.err
    assert 'package-hosts = ["127.0.0.2:1"]' in done.err
    run.set_policy(f'{text}index = "{index.url}"\npackage-hosts = ["127.0.0.2:1"]\n')
    done, _ = ask(r, run)
    assert (done.code, "cannot be reached" in done.err) == (69, True)
