"""From hashes to a plan, step by step; and the plan as a value: it compares, and comes back from marshal and JSON."""

from __future__ import annotations

import json
import marshal
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxrun.config.worker import parse_worker
from sandboxrun.describe.paint import Paint
from sandboxrun.describe.plan import masked, text
from sandboxrun.errors import ConfigError, FetchError, IntegrityError, PolicyError, SandboxrunError
from sandboxrun.fetch.cache import Cache
from sandboxrun.fetch.cached import from_cache
from sandboxrun.host.examine import examine
from sandboxrun.host.folders import Folders
from sandboxrun.host.plain import differences, from_plain, to_plain
from sandboxrun.host.plan import Preparation
from sandboxrun.host.runplan import RunOptions, RunPlan
from sandboxrun.policy import approval
from sandboxrun.records import replace
from sandboxrun.redis.hashes import Hashes, Stored
from sandboxrun.sandbox.compile.policy import build
from sandboxrun.sandbox.supervisor.child import this_interpreter

SCRIPT = "\ufeffprint('\xe9')\n".encode()
NOTHING = lambda commands: [0] * len(commands)  # noqa: E731 - a Redis without keys
OPTIONS = RunOptions("t", "1", "redis://:GEHEIM@127.0.0.1:6399")
POLICY = """\
[worker."*"]
inspect = true
allow-net = ["*", "0.0.0.0/0", "::/0"]
allow-read = ["*"]
allow-write = ["*"]
allow-run = ["*"]
allow-listen = ["127.0.0.1:*"]
allow-env = ["*"]
allow-redis = ["*", "+pubsub:*", "+*"]
"""
FULL = {
    "allowNet": "a.example:443,*.b.example,10.0.0.0/8:80,[::1]:5,2001:db8::/32,1.2.3.4", "denyNet": "evil.example",
    "allowRedis": "chat:*,%R~config:*,%W~log:*,+pubsub:news,+eval", "denyRedis": "chat:*", "allowListen": "127.0.0.1:0",
    "allowCall": "price,bank", "denyCall": "bank",
    "allowRun": "sh", "allowEnv": "TZ,API_KEY,GONE", "denyEnv": "GONE", "limitMemory": "1G", "limitOutput": "2M",
    "options": "--inspect-wait=127.0.0.1:9229", "encryptedJson": "GEHEIM", "requestLimit": "3", "botToken": "GEHEIM",
}  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    policy.chmod(0o600)
    return Folders(str(tmp_path / "cache"), str(tmp_path / "state"), str(tmp_path / "data"), (str(policy),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "worker"
    made.mkdir()
    (made / "worker.py").write_bytes(SCRIPT)
    return made


def stored(key: str, **fields: str) -> Stored:
    raw = {name.encode(): value.encode() for name, value in fields.items()}
    return Stored(key, "hash" if raw else "none", len(raw), raw)


def both(folder: Path, **fields: str) -> Hashes:
    return Hashes(stored("t:h"), stored("t:1:h", **{"url": str(folder), "version": "local", **fields}), 0)


@pytest.fixture
def planned(folder: Path, folders: Folders) -> Callable[..., RunPlan]:
    def plan(**fields: str) -> RunPlan:
        found = examine(both(folder, **fields), OPTIONS, folders, NOTHING)
        assert found.faults == []
        return found.plan()

    return plan


# --- the steps


def test_each_step_sets_its_attribute_and_the_last_makes_the_plan(folder: Path, folders: Folders) -> None:
    found = Preparation(OPTIONS, folders)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("config", lambda: found.parse_stored(both(folder))),
        ("ceiling", found.bound),
        ("source", found.resolve),
        ("artifact", lambda: found.fetch(from_cache(Cache(folders.cache, folders.state)))),
        ("agreement", lambda: found.approve(ask=False)),
        ("policy", found.compile),
    ]
    for name, step in steps:
        assert getattr(found, name) is None
        step()
        assert getattr(found, name) is not None
    plan = found.plan(("x",))
    assert (plan.worker.key, plan.degraded, plan.stands_on) == ("t:1:h", ("x",), ("t:1:h",))
    assert (plan.script.source, plan.script.folder, plan.script.is_file) == (SCRIPT, str(folder), True)


def test_a_hash_stands_on_that_of_its_type_where_that_names_the_script(folder: Path, folders: Folders) -> None:
    hashes = Hashes(stored("t:h", workerUrl=str(folder)), stored("t:1:h", version="local"), 0)
    assert examine(hashes, OPTIONS, folders, NOTHING).plan().stands_on == ("t:1:h", "t:h")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"allowNonsense": "1"}, ConfigError),
        ({"url": "/nowhere"}, ConfigError),
        ({"allowListen": "0.0.0.0:80"}, PolicyError),
        ({"sha256": "0" * 64}, IntegrityError),
        ({"allowRead": "/nowhere"}, ConfigError),
        ({"url": "https://raw.githubusercontent.com/o/r/main/w.py", "version": "v1"}, FetchError),
    ],
)
def test_where_a_step_fails_there_is_no_plan(
    folder: Path, folders: Folders, fields: dict[str, str], kind: type[SandboxrunError]
) -> None:
    found = examine(both(folder, **fields), OPTIONS, folders, NOTHING)
    with pytest.raises(kind) as raised:
        found.plan()
    assert found.faults[:1] in ([], [raised.value])


def test_looking_makes_and_records_nothing(folder: Path, folders: Folders) -> None:
    data = os.path.join(folders.data, "t", "1")
    found = examine(both(folder, allowWrite=data), OPTIONS, folders, NOTHING)
    assert (found.faults, os.path.exists(folders.data), os.path.exists(folders.approved)) == ([], False, False)
    assert found.agreement is not None and found.agreement.how == "first"
    asked = parse_worker("t", "1", {}, both(folder).own.fields).asked
    approval.save(found.approved, asked)
    found = examine(both(folder, allowWrite=data), OPTIONS, folders, NOTHING)
    assert found.agreement is not None
    assert (found.agreement.how, found.agreement.grown) == ("", (f"--allow-write {data}",))


def test_the_policy_with_a_scratch_folder_is_what_is_built_with_it(
    planned: Callable[..., RunPlan], tmp_path: Path
) -> None:
    plan, scratch = planned(), tmp_path / "scratch"
    scratch.mkdir()
    made = build(
        plan.worker.permissions, key="t:1:h", interpreter=this_interpreter(), scratch=str(scratch),
        local_source=plan.script.folder, redis=plan.policy.net.allow["net"][0], protected=[], limits=plan.limits,
    )  # fmt: skip
    assert plan.policy_with(str(scratch)) == made
    assert str(scratch) not in plan.policy.read + plan.policy.write


# --- the plan


def test_a_plan_comes_back_from_marshal_and_json(planned: Callable[..., RunPlan]) -> None:
    for plan in (planned(), planned(**FULL)):
        plain = to_plain(plan)
        for there_and_back in (marshal.loads(marshal.dumps(plain)), json.loads(json.dumps(plain, sort_keys=True))):
            assert there_and_back == plain
            assert from_plain(there_and_back) == plan


def test_a_plan_has_no_secret(planned: Callable[..., RunPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "GEHEIM")
    plan = planned(**FULL)
    assert plan.env == ("TZ", "API_KEY")
    assert plan.worker.has_secrets
    plain = to_plain(plan)
    for shown in (repr(plan), json.dumps(plain), text(plain, Paint(False))):
        assert "GEHEIM" not in shown
    assert b"GEHEIM" not in marshal.dumps(plain)


def test_plans_compare_and_say_what_differs(planned: Callable[..., RunPlan], folder: Path) -> None:
    before = planned(allowNet="a.example")
    assert planned(allowNet="a.example", greeting="hello") == before
    (folder / "worker.py").write_text("print()")
    after = planned(allowNet="a.example", limitMemory="1G")
    assert after != before
    found = differences(to_plain(before), to_plain(after))
    assert sorted(found) == ["limits.memory", "script.sha256", "script.source"]
    assert found["limits.memory"] == (4 << 30, 1 << 30)
    assert differences(to_plain(after), to_plain(after)) == {}


def _changed(plain: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**plain, name: _changed(plain.get(name, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 1), ("worker", None), ("worker.key", 5), ("worker.more", 1), ("limits.memory", "4G"), ("limits.more", 1),
        ("policy.net", {}), ("policy.read", "/"), ("policy.unix_socket", 5), ("env", "TZ"), ("script.source", b""),
        ("script.is_file", 1), ("worker.permissions", {"allow": {"net": ["a b"]}, "deny": {}}), ("more", 1),
        ("worker.permissions", {"allow": {"nonsense": []}, "deny": {}}), ("inspect", {}), ("worker.loop", {}),
    ],
)  # fmt: skip
def test_what_is_no_plan_is_said(planned: Callable[..., RunPlan], path: str, value: Any) -> None:
    plain = to_plain(planned())
    with pytest.raises(ConfigError, match=r"^this is no plan of sandboxrun: "):
        from_plain(_changed(plain, path, value))


@pytest.mark.parametrize("value", [None, [], "", 5, {}])
def test_what_is_nothing_like_a_plan_is_said_too(value: Any) -> None:
    with pytest.raises(ConfigError, match="no plan"):
        from_plain(value)


def test_the_token_of_a_url_is_masked_where_a_plan_is_shown(planned: Callable[..., RunPlan]) -> None:
    plan = planned()
    url = "https://h.example/w.py?token=GEHEIM"
    plan = replace(plan, worker=replace(plan.worker, url=url), script=replace(plan.script, origin=url))
    plain = masked(to_plain(plan))
    assert "GEHEIM" not in json.dumps(plain) + text(plain, Paint(False))
    assert "token=***" in text(plain, Paint(False))


def test_a_plan_cannot_drive_the_terminal(planned: Callable[..., RunPlan], folder: Path) -> None:
    named = folder / "a\x1b[2J\nb"
    named.mkdir()
    shown = text(to_plain(planned(allowRead=str(named))), Paint(False))
    assert all(c.isprintable() or c == "\n" for c in shown)
