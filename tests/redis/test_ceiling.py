"""The operator's ceiling by the whole command: what a hash asks beyond it is refused before anything is fetched."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from hints import hint_of, paste
from raw_host import RawHost
from runner import ALLOW_ALL, Runner

Local = Callable[..., Path]
RAN = "print('ran')\n"


@pytest.fixture
def default(run: Runner) -> Runner:
    """With no policy file at all."""
    run.set_policy(None)
    return run


def data_of(run: Runner, worker: str = "t/1") -> Path:
    return run.home / ".local/share/sandboxrun" / worker


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowNet", "*"), ("allowNet", "*.example.com:443"), ("allowNet", "10.0.0.0/8"), ("allowNet", "169.254.169.254:80"),
        ("allowRead", "/etc/hosts"), ("allowWrite", "/srv"), ("allowRun", "git"), ("allowListen", "127.0.0.1:0"), ("allowEnv", "TOKEN"),
        ("allowRedis", "c*"), ("allowRedis", "+eval"), ("options", "--allow-run=git"),
    ],
)  # fmt: skip
def test_what_the_default_policy_does_not_allow_is_refused_before_anything_is_fetched(
    r: redis.Redis, default: Runner, host: RawHost, field: str, value: str
) -> None:
    host.files["/v1/worker.py"] = RAN
    hash_ = {"url": host.url + "/{version}/worker.py", "version": "v1"}
    r.hset("t:1:h", mapping={**hash_, field: value})
    done = default("t", "1")
    assert (done.code, done.out) == (77, "")
    assert len(done.err.partition("hint: ")[0].splitlines()) == 1
    assert f"field {field} of t:1:h has {value.rpartition('=')[2]!r}, which " in done.err
    assert "the default policy does not allow" in done.err
    assert str(default.policy) in done.err  # where it can be allowed
    assert host.requests == []
    assert default("t", "1", "--yes").code == 77  # agreeing is not allowing
    # It is the policy that refuses, and nothing else.
    default.set_policy(ALLOW_ALL)
    assert default("t", "1").code in (0, 78)  # 78: a path or a program that is not here
    assert len(host.requests) == 1


def test_the_workers_own_data_folder_is_made_and_kept(r: redis.Redis, default: Runner, local: Local) -> None:
    data = data_of(default)
    local(
        f"open('{data}/kept', 'a').write('x')\nprint(open('{data}/kept').read())",
        allowRead=str(data),
        allowWrite=str(data),
    )
    assert [default("t", "1").out for _ in range(2)] == ["x\n", "xx\n"]
    assert data.stat().st_mode & 0o777 == 0o700
    local(RAN, key="t:2:h", allowRead=str(data))
    refused = default("t", "2")
    assert (refused.code, refused.out) == (77, "")
    assert f"(only what is in {data_of(default, 't/2')})" in refused.err
    assert not data_of(default, "t/2").exists()


DATA_SCRIPT = """\
import os
from sandboxrun import worker
data = worker.data()
assert os.environ["SANDBOXRUN_DATA"] == str(data)
with open(data / "kept", "a") as file:
    file.write("x")
print(data, open(data / "kept").read())
"""


@pytest.mark.parametrize("by", ["hash", "options", "flag"])
def test_a_worker_learns_its_data_folder_and_reads_what_it_wrote(
    r: redis.Redis, default: Runner, local: Local, by: str
) -> None:
    fields = {"hash": {"allowWrite": "~data"}, "options": {"options": "--allow-write=~data"}, "flag": {}}[by]
    flags = ["--allow-write=~data"] if by == "flag" else []
    for id_ in "12":  # two workers of a type share nothing
        local(DATA_SCRIPT, key=f"t:{id_}:h", **fields)
        for text in ("x", "xx"):
            done = default("t", id_, *flags)
            assert (done.code, done.out) == (0, f"{data_of(default, f't/{id_}')} {text}\n"), done.err
    assert data_of(default).stat().st_mode & 0o777 == 0o700


def test_the_data_folder_of_another_worker_is_out_of_reach(r: redis.Redis, default: Runner, local: Local) -> None:
    for id_ in "12":
        local(DATA_SCRIPT, key=f"t:{id_}:h", allowWrite="~data")
        assert default("t", id_).code == 0
    other = data_of(default, "t/2") / "kept"
    local(f"open({str(other)!r})", allowWrite="~data")
    done = default("t", "1")
    assert (done.code, other.read_text()) == (1, "x")
    assert "PermissionError: [Errno 13]" in done.err


def test_a_part_of_the_data_folder_may_be_denied_or_granted_alone(
    r: redis.Redis, default: Runner, local: Local
) -> None:
    (data_of(default) / "a").mkdir(parents=True)
    (data_of(default) / "b").mkdir()
    attempt = "from sandboxrun import worker\nfor name in 'ab':\n    try:\n        print(open(worker.data() / name / 'x', 'w+').read() == '')\n"
    attempt += "    except PermissionError:\n        print('refused')\n"
    for fields, out in [
        ({"allowWrite": "~data/a"}, "True\nrefused\n"),
        ({"allowWrite": "~data", "denyWrite": "~data/b"}, "True\nrefused\n"),
        ({"allowWrite": "~data", "denyRead": "~data/a"}, "refused\nTrue\n"),
        ({"allowRead": "~data"}, "refused\nrefused\n"),
    ]:
        r.delete("t:1:h")
        local(attempt, **fields)
        done = default("t", "1", "--yes")
        assert (done.code, done.out) == (0, out), done.err


def test_without_the_grant_there_is_no_data_folder_and_the_error_says_which(
    r: redis.Redis, default: Runner, local: Local, tmp_path: Path
) -> None:
    local("from sandboxrun import worker\nworker.data()\n", allowNet="example.com:443")
    done = default("t", "1")
    assert done.code == 1
    assert "ConfigError: t:1:h is not granted its data folder: ~data is in neither allowWrite nor allowRead" in done.err
    assert not data_of(default).exists()
    followed = paste(hint_of(done.err), default.env, tmp_path)
    assert followed.returncode == 0, followed.stderr
    assert r.hget("t:1:h", "allowWrite") == "~data"
    assert default("t", "1").code == 0


def test_what_was_agreed_to_holds_wherever_the_data_folder_is(
    r: redis.Redis, default: Runner, local: Local, tmp_path: Path
) -> None:
    local(DATA_SCRIPT, allowWrite="~data")
    assert default("t", "1").code == 0
    agreed = json.loads((default.home / ".local/state/sandboxrun/approved/t:1.json").read_text())
    assert agreed["allow"] == {"write": ["~data"]}
    default.env["XDG_DATA_HOME"] = str(tmp_path / "elsewhere")
    done = default("t", "1")
    assert (done.code, done.out) == (0, f"{tmp_path}/elsewhere/sandboxrun/t/1 x\n"), done.err
    [run] = [json.loads(path.read_text()) for path in (default.home / ".local/state/sandboxrun/runs").iterdir()]
    assert run["allow"] == {kind: [f"{tmp_path}/elsewhere/sandboxrun/t/1"] for kind in ("read", "write")}


def test_perms_and_show_know_the_data_folder(r: redis.Redis, default: Runner, local: Local) -> None:
    local(DATA_SCRIPT, allowWrite="~data")
    path = str(data_of(default))
    assert default("t", "1").code == 0
    for question in ("--write=~data", f"--write={path}/kept", "--read=~data/kept", f"--read={path}"):
        done = default("perms", "t", "1", question)
        assert (done.code, "granted by" in done.out or "allowed by ~data in field allowWrite" in done.out) == (
            0,
            True,
        ), done
    assert default("perms", "t", "1", f"--read={data_of(default, 't/2')}").code == 77
    shown = default("show", "t", "1")
    assert "write, make and remove ~data and what is below it" in shown.out
    assert "would end with" not in shown.out


def test_what_a_worker_wrote_is_never_run(r: redis.Redis, default: Runner, local: Local) -> None:
    data = data_of(default)
    local(f"open('{data}/worker.py', 'w').write('print(1)')", allowWrite=str(data))
    assert default("t", "1").code == 0
    r.hset("u:1:h", mapping={"url": str(data), "version": "local"})
    for policy in (None, ALLOW_ALL):
        default.set_policy(policy)
        done = default("u", "1")
        assert (done.code, done.out) == (77, "")
        assert "is never run" in done.err


def test_a_symlink_in_the_data_folder_leads_nowhere(
    r: redis.Redis, default: Runner, local: Local, tmp_path: Path
) -> None:
    data, private = data_of(default), tmp_path / "private"
    private.mkdir()
    (private / "secret").write_text("private")
    local(f"import os\nos.symlink('{private}', '{data}/link')", allowWrite=str(data))
    assert default("t", "1").code == 0
    assert (data / "link" / "secret").read_text() == "private"
    local(f"print(open('{data}/link/secret').read())", allowRead=f"{data}/link")
    done = default("t", "1", "--yes")
    assert (done.code, done.out) == (77, "")
    assert "field allowRead of t:1:h" in done.err


def test_a_link_that_is_changed_while_it_is_looked_at_leads_nowhere(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    inside, private, link = tmp_path / "inside", tmp_path / "private", tmp_path / "inside" / "link"
    for folder in (inside, inside / "data", private):
        folder.mkdir()
        (folder / "text").write_text("private" if folder == private else "data")
    run.set_policy(f'[worker."t"]\nallow-read = ["{inside}"]\n')
    local(f"print(open('{link}/text').read())", allowRead=str(link))
    link.symlink_to(private)
    assert (link / "text").read_text() == "private"  # it would lead there
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for target in (inside / "data", private):
                os.symlink(target, inside / "new")
                os.replace(inside / "new", link)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        found = {(done_.code, done_.out) for done_ in (run("t", "1", "--quiet") for _ in range(20))}
    finally:
        done.set()
        swapping.join()
    # Refused for where it leads, or for being a symlink where a worker may write.
    assert found <= {(77, ""), (78, "")}, found


def test_inside_at_and_beyond_what_a_file_allows(r: redis.Redis, run: Runner, local: Local) -> None:
    run.set_policy('# the most\n[worker."t"]\nallow-net = ["*.example.com:443"]\nlimit-memory = "1G"\n')
    for fields in ({"allowNet": "a.example.com:443"}, {"allowNet": "*.example.com:443", "limitMemory": "1G"}):
        local(RAN, **fields)
        assert run("t", "1", "--yes").out == "ran\n"
    for fields, line in [
        ({"allowNet": "*.example.com"}, 3), ({"allowNet": "example.com:443"}, 3),
        ({"allowNet": "", "limitMemory": "1025M"}, 4), ({"allowNet": "", "limitMemory": "0"}, 4),
    ]:  # fmt: skip
        local(RAN, **fields)
        done = run("t", "1")
        assert (done.code, done.out) == (77, "")
        assert f"{run.policy}:{line}" in done.err
        assert len(done.err.partition("hint: ")[0].splitlines()) == 1
    local("import resource\nprint(resource.getrlimit(resource.RLIMIT_AS)[0])", limitMemory="")
    assert run("t", "1").out == f"{1 << 30}\n"  # none of the hash's own: the ceiling's


def test_what_the_command_line_grants_is_the_operators_own_word(r: redis.Redis, default: Runner, local: Local) -> None:
    default.env["TOKEN"] = "token"
    local("import os, resource\nprint(os.environ['TOKEN'], open('/etc/hostname').read() != '')\n")
    assert default("t", "1", "--allow-env=TOKEN", "--allow-read=/etc/hostname").out == "token True\n"
    default.set_policy('[worker."*"]\nlimit-memory = "1G"\n')
    local("import resource\nprint(resource.getrlimit(resource.RLIMIT_AS)[0])")
    assert default("t", "1", "--limit-memory=2G").out == f"{2 << 30}\n"


def test_the_systems_file_bounds_beside_the_users(r: redis.Redis, run: Runner, local: Local, tmp_path: Path) -> None:
    system = tmp_path / "xdg" / "sandboxrun" / "policy.toml"
    system.parent.mkdir(parents=True)
    system.write_text('[worker."*"]\nallow-env = ["TZ"]\n')
    system.chmod(0o644)
    run.env["XDG_CONFIG_DIRS"] = f"{tmp_path}/empty:{tmp_path}/xdg"
    local(RAN, allowEnv="TZ", allowNet="*")
    assert run("t", "1").out == "ran\n"
    local(RAN, allowEnv="TZ,LC_ALL")
    for options in ((), ("--policy", str(run.policy)), ("--yes",)):
        done = run("t", "1", *options)
        assert (done.code, done.out) == (77, "")
        assert f"{system}:2" in done.err
    other = tmp_path / "other.toml"
    other.write_text('[worker."t"]\nallow-net = []\n')
    other.chmod(0o600)
    local(RAN, allowEnv="TZ")
    done = run("t", "1", "--policy", str(other))
    assert (done.code, f"{other}:2" in done.err) == (77, True)


def test_a_policy_that_is_wrong_runs_nothing(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    for text, place in [
        ("[worker\n", f"{run.policy}:1 is not TOML"),
        ('[worker."t"]\nallow-nets = []\n', f"{run.policy}:2 has 'allow-nets'"),
        ('[worker."t*"]\n[worker."*t"]\n', f"{run.policy}:1 and {run.policy}:2 both match t:1"),
    ]:
        run.set_policy(text)
        done = run("t", "1")
        assert (done.code, done.out) == (78, "")
        assert place in done.err
        assert len(done.err.partition("hint: ")[0].splitlines()) == 1
    run.set_policy(ALLOW_ALL)
    run.policy.chmod(0o666)
    done = run("t", "1")
    assert (done.code, done.out) == (78, "")
    assert "can be written by others" in done.err
    assert run("t", "1", "--policy", str(run.home / "none.toml")).code == 78


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_policy_that_cannot_be_read_runs_nothing(r: redis.Redis, run: Runner, local: Local) -> None:
    local(RAN)
    run.policy.chmod(0)
    done = run("t", "1")
    assert (done.code, done.out) == (78, "")
    assert f"the policy file {run.policy} cannot be read: Permission denied" in done.err
    run.policy.chmod(0o600)
    run.policy.parent.chmod(0)
    try:
        assert run("t", "1").code == 78
    finally:
        run.policy.parent.chmod(0o700)
    assert run("t", "1").out == "ran\n"


def test_pins_hosts_and_digests_that_are_required(r: redis.Redis, run: Runner, local: Local, host: RawHost) -> None:
    digest = hashlib.sha256(RAN.encode()).hexdigest()
    host.files["/v1.0.0/worker.py"] = host.files["/main/worker.py"] = RAN
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/worker.py", "version": "main"})
    run.set_policy('[worker."t"]\npinned = true\n')
    done = run("t", "1")
    assert (done.code, host.requests) == (77, [])
    assert f"which may be a branch, and {run.policy}:2 allows pinned versions only" in done.err
    r.hset("t:1:h", "version", "v1.0.0")
    assert run("t", "1").out == "ran\n"

    asked = len(host.requests)
    run.set_policy('[worker."t"]\nimport = ["git.example.com"]\n')
    done = run("t", "1", "--reload")
    assert (done.code, len(host.requests)) == (77, asked)
    assert f"{run.policy}:2" in done.err
    run.set_policy(f'[worker."t"]\nimport = ["127.0.0.1:{host.port}"]\n')
    assert run("t", "1", "--reload").out == "ran\n"

    run.set_policy(f'[worker."t"]\nsha256 = ["{"0" * 64}"]\n')
    done = run("t", "1")
    assert (done.code, done.out) == (77, "")
    assert digest in done.err
    run.set_policy(f'[worker."t"]\nsha256 = ["{digest}"]\n')
    assert run("t", "1").out == "ran\n"

    local(RAN)
    run.set_policy('[worker."t"]\nlocal = false\n')
    assert run("t", "1").code == 77


def test_the_policy_and_the_audit_log_cannot_be_granted_for_writing(
    r: redis.Redis, run: Runner, local: Local, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "p.toml").write_text(ALLOW_ALL)
    (kept / "p.toml").chmod(0o600)
    local(RAN, allowWrite=str(kept))
    assert run("t", "1").out == "ran\n"
    for option, name in (("--audit", "audit.log"), ("--policy", "p.toml")):
        done = run("t", "1", option, str(kept / name))
        assert (done.code, done.out) == (78, "")
        assert f"({kept}/{name})" in done.err
