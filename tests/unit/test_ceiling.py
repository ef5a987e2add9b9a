"""The operator's ceiling: what a policy file says, and what it means for a hash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxrun.config.limits import LIMITS, Limits
from sandboxrun.config.permissions import KINDS, NetTarget, Permissions
from sandboxrun.config.worker import WorkerConfig, parse_worker
from sandboxrun.errors import ConfigError, PolicyError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.policy.file import ceiling_for, parse, section_for
from sandboxrun.sandbox.compile.policy import build
from sandboxrun.sandbox.supervisor.child import this_interpreter

DATA = "/home/me/.local/share/sandboxrun/demo-worker/1"


def worker(**fields: str) -> WorkerConfig:
    fields = {"url": "https://example.com/{version}", "version": "v1", **fields}
    return parse_worker("demo-worker", "1", {}, {name.encode(): text.encode() for name, text in fields.items()})


def ceiling(config: WorkerConfig, *policies: str, data: str = DATA) -> Ceiling:
    found = [section_for(parse(text, f"/p{n}.toml"), config.type, config.id) for n, text in enumerate(policies)]
    return Ceiling(config, tuple(section for section in found if section is not None), data, "/user.toml")


def check(
    fields: dict[str, str], *policies: str, data: str = DATA, flags: dict[str, int] | None = None
) -> WorkerConfig:
    return ceiling(worker(**fields), *policies, data=data).check(flags or {})


def all_of(**keys: str) -> str:
    return '[worker."*"]\n' + "".join(f"{key.replace('_', '-')} = {value}\n" for key, value in keys.items())


@pytest.mark.parametrize(
    ("field", "inside", "beyond"),
    [
        ("allowNet", "example.com example.com:443 127.0.0.1:8000 8.8.8.8 [2606:4700::1]:443 [::1]:80 10.0.0.1",
         "* *:443 *.example.com 10.0.0.0/8 0.0.0.0/0 ::/0 169.254.169.254 169.254.1.1:80 fe80::1 [fd00:ec2::254]:80 168.63.129.16 "
         "[::ffff:169.254.169.254]:80 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1 ::a9fe:a9fe 100.100.100.200"),
        ("allowRead", f"{DATA} {DATA}/a", "/ /etc/hosts /home/me /home/me/.local/share/sandboxrun/demo-worker/10 "
         "/home/me/.local/share/sandboxrun/demo-worker"),
        ("allowWrite", f"{DATA} {DATA}/a/b", "/srv /tmp"),
        ("allowRun", "", "git /usr/bin/git"),
        ("allowListen", "", "127.0.0.1:8000 127.0.0.1:0"),
        ("allowEnv", "", "TZ AWS_SECRET_ACCESS_KEY"),
        ("allowRedis", "chat:* %R~config:? queue %W~log:*:x +pubsub:news +pubsub:news:* demo-worker %R~demo-worker:*",
         "* ~cha*:x ?:a %R~* +eval +pubsub:* +pubsub:n?:x demo-worker:* demo-worker:h %W~demo-worker:1:h demo-worker:1:?"),
    ],
)  # fmt: skip
def test_the_default_policy(field: str, inside: str, beyond: str) -> None:
    for text in inside.split():
        check({field: text})
    for text in beyond.split():
        with pytest.raises(
            PolicyError, match=f"field {field} of demo-worker:1:h has .*the default policy does not allow"
        ):
            check({field: text})


def test_a_refusal_names_the_field_the_value_and_the_line() -> None:
    policy = '# mine\n\n[worker."demo-*"]\nallow-net = [\n  "example.com:443",\n]\n'
    check({"allowNet": "example.com:443"}, policy)
    with pytest.raises(PolicyError) as found:
        check({"allowNet": "*"})
    assert str(found.value) == (
        "field allowNet of demo-worker:1:h has '*', which the default policy does not allow (no wildcards)"
    )
    assert found.value.hint == (
        "( umask 077 && mkdir -p / && cat >>/user.toml ) <<'END'",
        "",
        '[worker."demo-worker"]',
        'allow-net = ["*"]',
        "END",
    )
    for fields, where in [
        ({"allowNet": "example.com:443,example.com:80"}, "field allowNet of demo-worker:1:h"),
        ({"options": "--allow-net=example.com:80"}, "--allow-net in field options of demo-worker:1:h"),
    ]:
        with pytest.raises(PolicyError) as found:
            check(fields, policy)
        assert str(found.value) == f"{where} has 'example.com:80', which /p0.toml:4 does not allow"


def test_the_own_data_folder_may_be_named_without_its_path() -> None:
    for name in ("~data", "~data/", "~data/a", "~data/a/./b//c"):
        for field in ("allowRead", "allowWrite"):
            check({field: name})
            check({field: name}, all_of(allow_read='["~data"]', allow_write=f'["{DATA}"]'))
    with pytest.raises(
        PolicyError, match=r"field allowWrite of demo-worker:1:h has '~data', which /p0.toml:2 does not"
    ):
        check({"allowWrite": "~data"}, all_of(allow_write='["~data/a", "/srv"]'))
    with pytest.raises(PolicyError, match=r"/p0.toml:2 does not allow"):  # asked for by itself, and not by writing
        check({"allowRead": "~data"}, all_of(allow_read="[]"))


@pytest.mark.parametrize(
    "name", ["~data/..", "~data/../2", "~data/a/../../2", "~dataX", "~", "~root", "~/data", "data", "~data\0"]
)
def test_other_names_with_a_tilde_are_errors(name: str) -> None:
    for field in ("allowRead", "allowWrite", "denyRead", "denyWrite"):
        with pytest.raises(ConfigError, match=f"field {field} of demo-worker:1:h has "):
            worker(**{field: name})
    with pytest.raises(ConfigError, match="field allowRun"):
        worker(allowRun="~data/tool")


def test_the_own_data_folder_is_readable_if_it_is_writable() -> None:
    placed = worker(allowWrite="~data,/srv", denyRead="~data/x", allowRun="sh").permissions.with_data(DATA)
    assert dict(placed.allow) == {"write": (DATA, "/srv"), "run": ("sh",), "read": (DATA,)}
    assert dict(placed.deny) == {"read": (f"{DATA}/x",)}
    assert placed.with_data("/elsewhere") == placed
    assert dict(worker(allowWrite=DATA).permissions.with_data(DATA).allow) == {"write": (DATA,)}  # by its path: as ever


def test_two_workers_of_a_type_have_a_data_folder_each() -> None:
    config = worker(allowWrite="~data")
    assert [config.permissions.with_data(f"/d/t/{id_}").allow["write"] for id_ in "12"] == [("/d/t/1",), ("/d/t/2",)]


def test_the_own_data_folder_is_bounded_by_where_it_leads(tmp_path: Path) -> None:
    data, private = tmp_path / "data", tmp_path / "private"
    for folder in (data, private):
        folder.mkdir()
    (data / "link").symlink_to(private)
    check({"allowWrite": "~data/x"}, data=str(data))
    with pytest.raises(PolicyError, match="'~data/link/x', which the default policy does not allow"):
        check({"allowRead": "~data/link/x"}, data=str(data))
    found = ceiling(worker(allowWrite="~data/x"), data=str(data))
    for kind in ("read", "write"):
        found.check_path(kind, f"{data}/x", f"{data}/x")
        with pytest.raises(PolicyError, match="field allowWrite of demo-worker:1:h has '~data/x'"):
            found.check_path(kind, f"{data}/x", str(private))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_list_grants_nothing_and_what_no_file_sets_is_the_defaults(kind: str) -> None:
    example = {
        "net": "8.8.8.8",
        "read": DATA,
        "write": DATA,
        "run": "git",
        "listen": "127.0.0.1:1",
        "env": "TZ",
        "redis": "a:*",
        "call": "price",
    }
    field = KINDS[kind].field()
    with pytest.raises(PolicyError, match=r"/p0.toml:2 does not allow"):
        check({field: example[kind]}, all_of(**{f"allow-{kind}": "[]"}))
    other = all_of(**{f"allow-{'net' if kind != 'net' else 'read'}": "[]"})
    if kind in ("net", "read", "write", "redis", "call"):
        check({field: example[kind]}, other)
    else:
        with pytest.raises(PolicyError, match="the default policy does not allow"):
            check({field: example[kind]}, other)


def test_wildcards_of_a_policy() -> None:
    check({"allowRead": "/etc/hosts"}, all_of(allow_read='["*"]'))
    check({"allowRun": "git"}, all_of(allow_run='["*"]'))
    check({"allowEnv": "TZ"}, all_of(allow_env='["*"]'))
    check({"allowListen": "127.0.0.1:80,127.0.0.1:0"}, all_of(allow_listen='["127.0.0.1:*"]'))
    check({"allowRedis": "+eval,+xgroup|destroy"}, all_of(allow_redis='["+*"]'))
    check({"allowWrite": f"{DATA}/a/b"}, all_of(allow_write='["~data/a"]'))
    for fields, policy in [
        ({"allowListen": "0.0.0.0:80"}, all_of(allow_listen='["127.0.0.1:*"]')),
        ({"allowWrite": f"{DATA}/b"}, all_of(allow_write='["~data/a"]')),
        ({"allowRedis": "eval"}, all_of(allow_redis='["+*"]')),
    ]:
        with pytest.raises(PolicyError):
            check(fields, policy)


def test_both_files_bound_and_neither_widens_the_other() -> None:
    wide, narrow = all_of(allow_net='["*", "10.0.0.0/8"]'), all_of(allow_net='["*.example.com"]')
    for policies, place in [((wide, narrow), "/p1.toml:2"), ((narrow, wide), "/p0.toml:2")]:
        check({"allowNet": "a.example.com"}, *policies)
        for text in ("10.0.0.1", "example.org"):
            with pytest.raises(PolicyError, match=f"which {place} does not allow"):
                check({"allowNet": text}, *policies)
    # One that has no section for this worker, or does not set the kind, says nothing of it.
    check({"allowNet": "10.0.0.1"}, '[worker."other"]\nallow-net = []\n', wide)
    check({"allowNet": "10.0.0.0/9"}, all_of(pinned="true"), wide)


def test_the_most_specific_section_decides() -> None:
    patterns = ["*", "d*", "demo-*", "demo-worker", "demo-worker:*", "demo-worker:1"]
    text = "".join(f'[worker."{pattern}"]\n' for pattern in reversed(patterns))
    for count in range(1, len(patterns) + 1):
        less = "".join(f'[worker."{pattern}"]\n' for pattern in reversed(patterns[:count]))
        found = section_for(parse(less, "p"), "demo-worker", "1")
        assert found is not None
        assert found.pattern == patterns[count - 1]
    assert section_for(parse(text, "p"), "other", "1").pattern == "*"  # type: ignore[union-attr]
    assert section_for(parse('[worker."demo-worker:1"]', "p"), "demo-worker", "2") is None
    assert section_for(parse('[worker."demo"]', "p"), "demo-worker", "1") is None


def test_two_that_match_and_are_equally_specific_are_an_error_that_names_both_lines() -> None:
    policy = '[worker."*"]\nallow-net = []\n\n[worker."d*"]\n[worker."demo-*"]\n[worker."*-work"]\n'
    with pytest.raises(ConfigError) as found:
        section_for(parse(policy, "/p.toml"), "demo-work", "1")
    assert str(found.value).startswith("/p.toml:5 and /p.toml:6 both match demo-work:1")


def test_paths_are_bounded_by_where_they_lead(tmp_path: Path) -> None:
    inside, private = tmp_path / "inside", tmp_path / "private"
    inside.mkdir()
    private.mkdir()
    (inside / "link").symlink_to(private)
    (inside / "tool").symlink_to("/bin/sh")
    (tmp_path / "alias").symlink_to(inside)
    policy = all_of(allow_read=f'["{inside}"]', allow_run=f'["{inside}"]')
    check({"allowRead": f"{inside},{inside}/x,{tmp_path}/alias/x"}, policy)
    check({"allowRead": f"{inside}/x"}, all_of(allow_read=f'["{tmp_path}/alias"]'))
    for fields in ({"allowRead": f"{inside}/link"}, {"allowRead": f"{inside}/link/x"}, {"allowRun": f"{inside}/tool"}):
        with pytest.raises(PolicyError):
            check(fields, policy)


def test_a_path_that_leads_elsewhere_when_it_is_granted_is_refused(tmp_path: Path) -> None:
    config = worker(allowRead=f"{tmp_path}/x")
    found = ceiling(config, all_of(allow_read=f'["{tmp_path}"]'))
    found.check({})
    found.check_path("read", f"{tmp_path}/x", f"{tmp_path}/x/y")
    with pytest.raises(PolicyError, match="allowRead"):
        found.check_path("read", f"{tmp_path}/x", "/etc")
    found.check_path("read", "/etc", "/etc")  # not of the hash: the command line's, which is the operator's own word


def test_the_path_that_was_checked_is_the_one_that_is_granted(tmp_path: Path) -> None:
    """Whatever the link leads to afterwards; and where the check refuses, there is no policy."""
    good, private, link = tmp_path / "good", tmp_path / "private", tmp_path / "safe" / "link"
    for folder in (good, private, link.parent):
        folder.mkdir()
    link.symlink_to(good)
    seen = []

    def changed(kind: str, path: str, real: str) -> None:
        seen.append((kind, path, real))
        link.unlink()
        link.symlink_to(private)

    def granted(check_path: Callable[[str, str, str], None]) -> tuple[str, ...]:
        return build(
            Permissions.parse([("allow", "read", str(link), "x")]),
            key="t:1:h",
            interpreter=this_interpreter(),
            scratch=str(tmp_path),
            local_source=None,
            redis=NetTarget.parse("127.0.0.1:1"),
            protected=(str(link.parent),),  # elsewhere, a symlink is followed only where no worker can write
            limits=Limits(),
            check_path=check_path,
        ).read

    found = granted(changed)
    assert seen == [("read", str(link), str(good))]
    assert str(good) in found
    assert str(private) not in found
    config = worker(allowRead=str(link))
    with pytest.raises(PolicyError):
        granted(ceiling(config, all_of(allow_read=f'["{good}"]')).check_path)


def test_limits_are_bounded_and_set_where_the_hash_sets_none() -> None:
    policy = all_of(limit_memory='"1G"', limit_cpu='"10m"', limit_files="0", limit_output='"1M"')
    found = check({}, policy).limits
    assert (found.memory, found.cpu, found.files, found.output, found.threads) == (1 << 30, 600, 1024, 1 << 20, 256)
    found = check({"limitMemory": "512M", "limitCpu": "1m", "limitFiles": "0"}, policy).limits
    assert (found.memory, found.cpu, found.files) == (512 << 20, 60, 0)
    for field, text, shown in [
        ("limitMemory", "2G", "2G"),
        ("limitMemory", "0", "0, no limit"),
        ("limitCpu", "601", "601s"),
    ]:
        with pytest.raises(
            PolicyError, match=f"field {field} of demo-worker:1:h is {shown}, and /p0.toml:[23] allows at most"
        ):
            check({field: text}, policy)
    config = parse_worker("t", "1", {}, {b"url": b"/x", b"version": b"local"}, limits={"memory": 0})
    assert ceiling(config, policy).check({"memory": 0}).limits.memory == 0  # the command line's
    assert check({"limitMemory": "0"}).limits.memory == 0
    # What is compared with the last run is what holds.
    assert check({"limitCpu": "60"}, policy).asked.limits == {"cpu": 60, "memory": 1 << 30, "output": 1 << 20}


def test_what_may_run_at_all() -> None:
    host = {"host": ("example.com", 443), "path": None}
    local = {"host": None, "path": "/srv/worker.py"}
    for policy, arguments, place in [
        (all_of(pinned="true"), {**host, "branch": True}, "/p0.toml:2"),
        (all_of(pinned="true"), {**local, "branch": False}, "/p0.toml:2"),
        (all_of(pinned="true", local="false"), {**local, "branch": False}, "/p0.toml:3"),
        (all_of(local="false"), {**local, "branch": False}, "/p0.toml:2"),
        ('[worker."*"]\nimport = ["git.example.com"]\n', {**host, "branch": False}, "/p0.toml:2"),
        ('[worker."*"]\nimport = ["example.com:8443"]\n', {**host, "branch": False}, "/p0.toml:2"),
    ]:
        with pytest.raises(PolicyError, match=place):
            ceiling(worker(), policy).check_source(**arguments)  # type: ignore[arg-type]
    for policy, arguments in [
        (all_of(pinned="true"), {**host, "branch": False}),
        (all_of(pinned="true", local="true"), {**local, "branch": False}),
        ('[worker."*"]\nimport = ["Example.com"]\n', {**host, "branch": True}),
        (all_of(), {**local, "branch": False}),
    ]:
        ceiling(worker(), policy).check_source(**arguments)  # type: ignore[arg-type]


def test_what_a_worker_may_write_is_never_code() -> None:
    for path in (f"{DATA}/worker.py", os.path.dirname(DATA), "/home/me/.local/share/sandboxrun/other/1/x/worker.py"):
        with pytest.raises(PolicyError, match="is never run"):
            ceiling(worker(), all_of(local="true")).check_source(host=None, path=path, branch=False)
    with pytest.raises(PolicyError, match="what is there is never run"):
        check({"allowRun": f"{DATA}/tool"}, all_of(allow_run='["*"]'))


def test_digests_that_are_required() -> None:
    right, wrong = "ab" * 32, "cd" * 32
    policy = all_of(sha256=f'["sha256:{right.upper()}"]')
    check({"sha256": right}, policy)
    ceiling(worker(), policy).check_digest(right)
    with pytest.raises(PolicyError, match=f"field sha256 of demo-worker:1:h has sha256 {wrong}, .* /p0.toml:2"):
        check({"sha256": wrong}, policy)
    with pytest.raises(PolicyError, match=f"the script of demo-worker:1:h has sha256 {wrong}"):
        ceiling(worker(), policy).check_digest(wrong)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[worker."a"]\nallow-net = ["a"\n', 2, "is not TOML"),
        ("[worker\n", 1, "is not TOML"),
        ("a = 1\n\n[worker.a]\n", 1, "has 'a'"),
        ("\n[workers.a]\n", 2, "has 'workers'"),
        ("worker = 1\n", 1, "has 'worker'"),
        ("# x\n[worker]\nallow-net = []\n", 3, "has 'allow-net' for a worker"),
        ('[worker."A b"]\n', 1, "has 'A b' for a worker"),
        ('[worker."x"]\n[worker."a"]\n\nallow-nets = []\n', 4, "has 'allow-nets'"),
        ('[worker."x"]\nallow-net = []\n[worker."a"]\nallow-net = "a"\n', 4, "expected a list of strings"),
        ('[worker."a"]\nallow-net = [1]\n', 2, "expected a list of strings"),
        ('[worker."a"]\nallow-net = [\n"http://x",\n]\n', 2, "'http://x' is wrong"),
        ('[worker."a"]\nallow-read = ["rel"]\n', 2, "'rel' is wrong"),
        ('[worker."a"]\nallow-read = ["~data/../.."]\n', 2, "is wrong"),
        ('[worker."a"]\nallow-read = ["~"]\n', 2, "is wrong"),
        ('[worker."a"]\nallow-redis = ["+config"]\n', 2, "is wrong"),
        ('[worker."a"]\ndeny-net = []\n', 2, "has 'deny-net'"),
        ('[worker."a"]\nlimit-memory = true\n', 2, "expected bytes"),
        ('[worker."a"]\nlimit-memory = "x"\n', 2, "expected bytes"),
        ('[worker."a"]\nlimit-memories = 1\n', 2, "has 'limit-memories'"),
        ('[worker."a"]\npinned = "yes"\n', 2, "expected true or false"),
        ('[worker."a"]\nlocal = 1\n', 2, "expected true or false"),
        ('[worker."a"]\nimport = ["*.x.com"]\n', 2, "is wrong"),
        ('[worker."a"]\nimport = ["10.0.0.0/8"]\n', 2, "is wrong"),
        ('[worker."a"]\nsha256 = ["abc"]\n', 2, "is wrong"),
        ('[worker."a"]\n[worker."a"]\n', 2, "is not TOML"),
        ('[ worker . \'a\' ] # x\n"allow-net" = 1\n', 2, "expected a list"),
        ('[worker."a"]\nallow-net = [[[' + "[" * 5000 + "\n", 2, "is not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(text, "/etc/p.toml")
    assert str(found.value).startswith(f"/etc/p.toml:{line} "), found.value
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def load(path: Path, *, required: bool = False) -> Ceiling:
    return ceiling_for(worker(), system=(), user=str(path), required=required, data=DATA)


def test_a_file_that_is_not_there_is_no_policy_unless_it_was_named(tmp_path: Path) -> None:
    assert load(tmp_path / "policy.toml").sections == ()
    assert load(tmp_path / "no" / "policy.toml").sections == ()
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "policy.toml", required=True)


def test_a_file_that_others_can_write_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[worker."*"]\n')
    path.chmod(0o644)
    assert len(load(path).sections) == 1
    for mode in (0o666, 0o664, 0o622):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"{path} can be written by others"):
            load(path)
    path.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"the policy folder {tmp_path} can be written by others"):
        load(path)
    tmp_path.chmod(0o700)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a file"):
        load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)
    path.unlink()
    path.write_bytes(b'[worker."*"]\n# \xff\n')
    with pytest.raises(ConfigError, match=f"{path}:2 is not UTF-8"):
        load(path)
    path.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(ConfigError, match="more than 256 KiB"):
        load(path)


def test_every_limit_can_be_bounded() -> None:
    for limit in LIMITS.values():
        text = limit.show(limit.least)
        assert getattr(check({}, all_of(**{f"limit-{limit.name}": f'"{text}"'})).limits, limit.name) == limit.least


def test_the_data_folder_is_made_for_us_alone_and_only_where_it_is_granted(tmp_path: Path) -> None:
    data = tmp_path / "share" / "sandboxrun" / "demo-worker" / "1"
    ceiling(worker(), data=str(data)).make_data()
    assert not data.exists()
    os.umask(os.umask(0o22))
    ceiling(worker(allowWrite="~data"), data=str(data)).make_data()
    assert [path.stat().st_mode & 0o777 for path in (data.parents[1], data.parent, data)] == [0o700] * 3
    data.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        ceiling(worker(allowRead=f"{data}/x"), data=str(data)).make_data()
