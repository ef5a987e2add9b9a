"""Each hint of the operator's policy, followed in the situation in which it is given. What a file said before stays."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from following import RAN, Stage, follow
from hints import templates
from raw_host import RawHost
from runner import Runner

from sandboxrun.config.limits import LIMITS

APPEND = "( umask 077 && mkdir -p {} && cat >>{} ) <<'END'\n\n[worker.\"{}\"]\n{}\nEND"
EDIT = "sed -i {} {}"
OTHERS = (
    '# kept\n[worker."*"]\nopen-redis = true\nallow-env = [\'TZ\']\nlimit-cpu = "1h"\nlimit-time = 0\npinned = false'
)
OWN = "[worker.'t']  # mine\n\"allow-env\" = [\n  'TZ', # kept\n]\nlimit-cpu = '1h'\n\n[worker.\"*\"]\nopen-redis = true\n"
BOTH = {"none": "", "others": OTHERS, "own": OWN}
DIGEST = hashlib.sha256(RAN.encode()).hexdigest()


@pytest.fixture
def stage(r: redis.Redis, run: Runner, host: RawHost, tmp_path: Path) -> Stage:
    (tmp_path / "w").mkdir()
    run.set_policy(None)
    return Stage(r, run, host, tmp_path / "w")


def policy(stage: Stage) -> dict[str, Any]:
    sections: dict[str, Any] = tomllib.loads(stage.run.policy.read_text())["worker"]
    return sections


def keeps(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a section says what it said before, 3600s for 1h; its list of variables may have more."""
    env = set(now.get("allow-env", ())) >= set(before.get("allow-env", ()))
    return env and all(meaning(key, now[key]) == meaning(key, before[key]) for key in before if key != "allow-env")


def meaning(key: str, value: Any) -> Any:
    return LIMITS[key.removeprefix("limit-")].parse(str(value)) if key.startswith("limit-") else value


GRANTS = {
    "allowNet": "*,example.com,10.0.0.0/8:80", "allowRead": "/etc/hosts,~data,/etc/passwd", "allowWrite": "{folder}/a b",
    "allowRun": "sh,/bin/cat", "allowListen": "127.0.0.1:0,[::1]:8000", "allowEnv": "LESS", "allowRedis": "%R~c*,a:?,+eval",
}  # fmt: skip


@pytest.mark.parametrize("before", BOTH)
@pytest.mark.parametrize("field", GRANTS)
def test_what_the_policy_does_not_allow_is_added_to_it(stage: Stage, before: str, field: str) -> None:
    data = stage.folder.parent / "data"
    (data / "a b").mkdir(parents=True)
    stage.run.set_policy(BOTH[before] or None)
    stage.local(**{field: GRANTS[field].format(folder=data)})
    known = policy(stage) if BOTH[before] else {}
    follow(stage, stage.again(), EDIT if before == "own" else APPEND, "does not allow")
    now = policy(stage)
    assert all(keeps(now[name], section) for name, section in known.items())
    if before == "others":  # nobody else is given more, and what held for this worker still does
        assert now["*"] == known["*"] and keeps(now["t"], known["*"])
    assert stage.run.policy.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("before", BOTH)
def test_a_debugger_is_allowed(stage: Stage, before: str) -> None:
    pytest.importorskip("debugpy")
    stage.run.set_policy(BOTH[before] or None)
    stage.local(options="--inspect=0")
    follow(stage, stage.again(), EDIT if before == "own" else APPEND, "asks for a debugger, which the default policy")


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("allow-env = []", "has 'LESS', which"),
        ("allow-env = ['TZ']", "has 'LESS', which"),
        ("allow-env = [\n'TZ',\n]", "has 'LESS', which"),
        ("local = false", "field version of t:1:h is 'local', which"),
        ("pinned = true", "field version of t:1:h is 'local', which"),
        (f"sha256 = ['{'0' * 64}']", f"has sha256 {DIGEST}, which is not among those that"),
        ("sha256 = []", f"has sha256 {DIGEST}, which is not among those that"),
        ("allow-listen = ['127.0.0.1:*']\nallow-redis = ['+*']\nallow-env = []", "has 'LESS', which"),
    ],
)
def test_a_line_of_the_file_that_refuses_is_edited(stage: Stage, setting: str, error: str, own: bool) -> None:
    pattern = "t" if own else "*"
    stage.run.set_policy(f'# first\n[worker."{pattern}"]\n{setting}\n\n[worker."u"]\nallow-env = []\n')
    before = policy(stage)
    stage.local(allowEnv="LESS" if "env" in setting else "")
    follow(stage, stage.again(), EDIT if own else APPEND, error)
    now = policy(stage)
    assert now["u"] == before["u"] and (own or now["*"] == before["*"])


@pytest.mark.parametrize("own", [True, False])
def test_the_host_of_a_script_is_added(stage: Stage, own: bool) -> None:
    stage.run.set_policy(f'[worker."{"t" if own else "*"}"]\nimport = ["example.com", "[::1]:8443"]\n')
    stage.remote()
    follow(stage, stage.again(), EDIT if own else APPEND, "which is not among the hosts of")


def test_a_debugger_that_is_forbidden_is_allowed(stage: Stage) -> None:
    pytest.importorskip("debugpy")
    stage.run.set_policy('[worker."t"]\ninspect = false # no\n')
    stage.local(options="--inspect=0")
    follow(stage, stage.again(), EDIT, "asks for a debugger, which")


@pytest.mark.parametrize("field", ["limitMemory", "limitCpu", "limitOutput"])
def test_a_limit_of_the_hash_is_lowered_to_the_policys(stage: Stage, field: str) -> None:
    stage.run.set_policy('[worker."*"]\nlimit-memory = "1G"\nlimit-cpu = "10m"\nlimit-output = "1M"\n')
    stage.local(**{field: "0"})
    follow(stage, stage.again(), "sandboxrun set {} {}={}", f"field {field} of t:1:h is 0, no limit, and")


def test_a_version_that_may_be_a_branch_is_named_as_a_tag(stage: Stage) -> None:
    stage.run.set_policy('[worker."*"]\npinned = true\n')
    stage.remote("v1")
    stage.host.files["/refs/tags/v1/w.py"] = RAN
    stage.placeholders = {"TAG": "v1"}
    follow(
        stage,
        stage.again(),
        "sandboxrun set {} version=refs/tags/TAG",
        "field version of t:1:h is 'v1', which may be a branch",
    )


def test_a_mistyped_key_is_mended(stage: Stage) -> None:
    stage.run.set_policy('[worker."t"]\n\nalow-env = ["LESS"]\n')
    stage.local(allowEnv="LESS")
    follow(stage, stage.again(), "sed -i {}s/{}/{}/ {}", f"{stage.run.policy}:3 has 'alow-env': expected one of")


@pytest.mark.parametrize(
    ("text", "template", "error"),
    [
        ("open-redis = true\nallow-env = ['LESS']\n\n[worker.'u']\n", "sed -i '{}i [worker.\"*\"]' {}", "1 has 'open-redis'"),
        ("\n[workers.'t']\nallow-env = ['LESS']\n", "sed -i {}s/{}/{}/ {}", "2 has 'workers'"),
    ],
)  # fmt: skip
def test_a_key_without_its_section_gets_one(stage: Stage, text: str, template: str, error: str) -> None:
    stage.run.set_policy(text)
    stage.local(allowEnv="LESS")
    follow(stage, stage.again(), template, f"{stage.run.policy}:{error}: expected sections as")


def test_a_policy_file_is_made(stage: Stage) -> None:
    stage.local()
    path = stage.folder / "my folder" / "policy.toml"
    template = "( umask 077 && mkdir -p {} && touch {} )"
    follow(stage, stage.again("--policy", str(path)), template, f"the policy file {path} does not exist")


@pytest.mark.parametrize("part", ["file", "folder"])
def test_a_policy_that_others_can_write_is_closed(stage: Stage, part: str) -> None:
    stage.run.set_policy('[worker."t"]\n')
    (stage.run.policy if part == "file" else stage.run.policy.parent).chmod(0o777)
    stage.local()
    follow(stage, stage.again(), "chmod go-w {}", f"the policy {part} {stage.run.policy.parent}")


def test_a_data_folder_that_others_can_write_is_closed(stage: Stage) -> None:
    folder = stage.run.home / ".local/share/sandboxrun/t/1"
    folder.mkdir(parents=True)
    folder.chmod(0o770)
    stage.local(allowWrite="~data")
    follow(stage, stage.again(), "chmod 700 {}", f"the folder {folder} of workers' data can be written by others")


@pytest.mark.parametrize("count", [1, 50])
def test_more_than_at_the_last_run_is_approved(stage: Stage, count: int) -> None:
    stage.local()
    assert stage.run("t", "1").code == 0
    stage.local(allowNet=",".join(f"h{number}.example" for number in range(count)))
    error = "there is no terminal to ask on" if count == 1 else "asks for 50 things more than at its last run"
    follow(stage, stage.again(), "sandboxrun approve {}", error)


def test_a_damaged_record_is_removed(stage: Stage) -> None:
    stage.local()
    assert stage.run("t", "1").code == 0
    (stage.run.home / ".local/state/sandboxrun/approved/t:1.json").write_text("{")
    follow(stage, stage.again(), "rm {}", "of what a worker was allowed is damaged")


def test_without_a_journal_a_file_is_named(stage: Stage) -> None:
    if os.path.exists("/run/systemd/journal/socket"):
        pytest.skip("there is a systemd journal here")
    from following import is_made_from
    from hints import hint_of, paste

    stage.local()
    done = stage.run("t", "1", "--audit", "journal")
    assert "there is no systemd journal" in done.err
    assert is_made_from("sandboxrun {} --audit FILE", hint_of(done.err))
    followed = paste(hint_of(done.err), stage.run.env, stage.folder, FILE="audit.log")
    assert (followed.returncode, followed.stdout) == (0, "ran\n")
    assert (stage.folder / "audit.log").exists()


SITUATIONS: dict[str, Callable[..., None]] = {
    APPEND: test_what_the_policy_does_not_allow_is_added_to_it,
    EDIT: test_a_line_of_the_file_that_refuses_is_edited,
    "sandboxrun set {} {}={}": test_a_limit_of_the_hash_is_lowered_to_the_policys,
    "sandboxrun set {} version=refs/tags/TAG": test_a_version_that_may_be_a_branch_is_named_as_a_tag,
    "sed -i {}s/{}/{}/ {}": test_a_mistyped_key_is_mended,
    "sed -i '{}i [worker.\"*\"]' {}": test_a_key_without_its_section_gets_one,
    "( umask 077 && mkdir -p {} && touch {} )": test_a_policy_file_is_made,
    "chmod go-w {}": test_a_policy_that_others_can_write_is_closed,
    "chmod 700 {}": test_a_data_folder_that_others_can_write_is_closed,
    "sandboxrun approve {}": test_more_than_at_the_last_run_is_approved,
    "rm {}": test_a_damaged_record_is_removed,
    "sandboxrun {} --audit FILE": test_without_a_journal_a_file_is_named,
}
ELSEWHERE = {
    "sudo tee -a {} >/dev/null <<'END'\n\n[worker.\"{}\"]\n{}\nEND": "the administrator's file, which needs root",
    "sudo sed -i {} {}": "the administrator's file, which needs root",
    "sudo chown {} {}": "a policy file of another user, which needs root",
}


def test_every_hint_is_followed_or_listed() -> None:
    assert set(templates("policy")) == {*SITUATIONS, *ELSEWHERE}
