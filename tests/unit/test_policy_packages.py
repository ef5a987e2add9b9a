"""The keys of a policy file about packages: what they accept, and that every file bounds."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hints import paste

from sandboxrun.config.worker import WorkerConfig, parse_worker
from sandboxrun.errors import ConfigError, PolicyError, SandboxrunError
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.policy.file import ceiling_for, parse, section_for
from sandboxrun.policy.packages import PackagesLimits

INDEX = "https://index.example/simple"
EXPECTED_URL = "expected the https URL of a package index, or an http URL on loopback"
EXPECTED_SIZE = "expected a size from 1M to 1T, as in 512M or 2G"


def worker(**fields: str) -> WorkerConfig:
    fields = {"url": "https://example.com/{version}", "version": "v1.0.0", **fields}
    return parse_worker("t", "1", {}, {name.encode(): text.encode() for name, text in fields.items()})


def ceiling(*policies: str, config: WorkerConfig | None = None) -> Ceiling:
    """Of files /p0.toml, /p1.toml …, the last of which is the user's; each text is a section for all workers."""
    sections = [section_for(parse(f'[worker."*"]\n{text}', f"/p{n}.toml"), "t", "1") for n, text in enumerate(policies)]
    return Ceiling(config or worker(), tuple(filter(None, sections)), "/data/t/1", f"/p{len(policies) - 1}.toml")


def test_without_a_file_any_name_of_any_index_is_allowed_if_it_is_locked() -> None:
    bound = ceiling()
    bound.check_packages(["requests", "anything"])
    assert (bound.index, bound.package_hosts, bound.allows_unlocked) == (None, None, False)
    assert bound.packages_limits == PackagesLimits(64 << 20, 512 << 20, 20_000)


@pytest.mark.parametrize(
    "url",
    [
        INDEX,
        INDEX + "/",
        "https://index.example:8443/a/b-c_d/simple/",
        "http://127.0.0.1:8000/simple",
        "http://localhost/simple",
        "http://[::1]:8000/",
        "https://10.0.0.7/simple",
    ],
)
def test_an_index_is_an_https_url_or_one_on_loopback(url: str) -> None:
    assert ceiling(f'index = "{url}"').index == url


@pytest.mark.parametrize(
    ("value", "shown", "expected"),
    [
        ('"http://index.example/simple"', "http://index.example/simple", EXPECTED_URL),
        ('"http://127.0.0.1.evil.example/"', "http://127.0.0.1.evil.example/", EXPECTED_URL),
        ('"http://10.0.0.7/simple"', "http://10.0.0.7/simple", EXPECTED_URL),
        ('"file:///srv/wheels"', "file:///srv/wheels", EXPECTED_URL),
        ('"git+https://index.example/x"', "git+https://index.example/x", EXPECTED_URL),
        ('"index.example"', "index.example", EXPECTED_URL),
        ('"https://"', "https://", EXPECTED_URL),
        ('"https://index.example:99999/"', "https://index.example:99999/", EXPECTED_URL),
        ('"https://index.example/a b"', "https://index.example/a b", EXPECTED_URL),
        ('"https://index.example/\\""', 'https://index.example/"', EXPECTED_URL),
        ('"https://index.exämple/"', "https://index.exämple/", EXPECTED_URL),
        ('"https://index.example/\\n--extra-index-url=x"', "https://index.example/\n--extra-index-url=x", EXPECTED_URL),
        ('"--extra-index-url"', "--extra-index-url", EXPECTED_URL),
        ('""', "", EXPECTED_URL),
        ("true", "True", EXPECTED_URL),
        ("[]", "[]", EXPECTED_URL),
        ('"https://me:secret@index.example/simple"', "https://index.example/simple",
         "expected a URL without a login, which belongs in ~/.netrc"),
        ('"https://secret@index.example/simple"', "https://index.example/simple",
         "expected a URL without a login, which belongs in ~/.netrc"),
        ('"https://index.example/simple?token=secret"', "https://index.example/simple",
         "expected a URL without ? and #; a token belongs in ~/.netrc"),
        ('"https://index.example/#secret"', "https://index.example/",
         "expected a URL without ? and #; a token belongs in ~/.netrc"),
        ('["https://me:secret@index.example/"]', "['https://index.example/']", EXPECTED_URL),
    ],
)  # fmt: skip
def test_another_index_is_an_error_with_its_line_and_without_its_password(
    value: str, shown: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        ceiling(f"# first\nindex = {value}")
    assert str(error.value) == f"/p0.toml:3 has index = {shown!r}: {expected}"
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('packages = "requests"', "has packages = 'requests': expected a list of strings"),
        ("packages = [1]", "has packages = '[1]': expected a list of strings"),
        ("packages = true", "has packages = 'True': expected a list of strings"),
        ('packages = ["Requests"]', "'Requests' is wrong: its canonical name is 'requests'"),
        ('packages = ["typing_extensions"]', "'typing_extensions' is wrong: its canonical name is 'typing-extensions'"),
        ('packages = ["a.b", "c"]', "'a.b' is wrong: its canonical name is 'a-b'"),
        ('packages = ["requests==2"]', "'requests==2' is wrong: not a name of letters, digits, - and *"),
        ('packages = ["re?uests"]', "'re?uests' is wrong: not a name of letters, digits, - and *"),
        ('packages = ["requests @ file:///x"]', "is wrong: not a name of letters, digits, - and *"),
        ('packages = [""]', "'' is wrong: not a name of letters, digits, - and *"),
        ('packages = ["-r"]', "'-r' is wrong: not a name of letters, digits, - and *"),
        ('packages = ["../x"]', "'../x' is wrong: not a name of letters, digits, - and *"),
        ('package-hosts = "files.example"', "has package-hosts = 'files.example': expected a list of strings"),
        ('package-hosts = ["https://files.example"]', "expected hosts, as in files.example.com or files.example.com:8443"),
        ('package-hosts = ["*.example"]', "expected hosts, as in files.example.com or files.example.com:8443"),
        ('package-hosts = ["10.0.0.0/8"]', "expected hosts, as in files.example.com or files.example.com:8443"),
        ('unlocked = "true"', "has unlocked = 'true': expected true or false"),
        ("unlocked = 1", "has unlocked = '1': expected true or false"),
        ("packages-size = 0", f"has packages-size = '0': {EXPECTED_SIZE}"),
        ("packages-size = 1000", f"has packages-size = '1000': {EXPECTED_SIZE}"),
        ('packages-size = "2T"', f"has packages-size = '2T': {EXPECTED_SIZE}"),
        ('packages-size = "-1M"', f"has packages-size = '-1M': {EXPECTED_SIZE}"),
        ('packages-size = "512 MB"', f"has packages-size = '512 MB': {EXPECTED_SIZE}"),
        ('packages-size = ""', f"has packages-size = '': {EXPECTED_SIZE}"),
        ("packages-size = 1.5", f"has packages-size = '1.5': {EXPECTED_SIZE}"),
        ("packages-size = true", f"has packages-size = 'True': {EXPECTED_SIZE}"),
        ('packages-size = ["1G"]', f"has packages-size = \"['1G']\": {EXPECTED_SIZE}"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_an_error_with_its_line(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ceiling(f"pinned = false\n{line}")
    assert str(error.value).startswith("/p0.toml:3 has ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("package", "packages"), ("indx", "index"), ("package-host", "package-hosts"), ("unlock", "unlocked"), ("package-size", "packages-size")],
)  # fmt: skip
def test_a_mistyped_key_names_the_one_that_is_meant(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"has '{key}': expected one of") as error:
        ceiling(f"{key} = true")
    assert error.value.hint == (f"sed -i 2s/{key}/{meant}/ /p0.toml",)


def test_every_file_must_allow_a_package_and_the_refusal_names_it_and_the_line() -> None:
    bound = ceiling('packages = ["requests", "types-*", "idna"]', "\npackages = ['*']")
    bound.check_packages(["idna", "requests", "types-requests"])
    for order in (bound, ceiling("packages = ['*']", '\npackages = ["requests", "types-*", "idna"]')):
        with pytest.raises(PolicyError) as error:
            order.check_packages(["idna", "evil", "types", "requests2"])
        line = 2 if order is bound else 3
        where = f"/p{0 if order is bound else 1}.toml:{line}"
        assert str(error.value) == (
            f"the script of t:1:h needs the package 'evil' (and 2 more), which {where} does not allow"
        )
    with pytest.raises(PolicyError, match=r"needs the package 'idna', which /p0.toml:2 does not allow"):
        ceiling("packages = []").check_packages(["idna"])
    ceiling("packages = []").check_packages([])


def test_the_hint_of_a_refused_package_keeps_all_that_the_section_says() -> None:
    text = (
        f'index = "{INDEX}"\npackage-hosts = ["files.example", "[::1]:8443"]\npackages = ["a"]\npackages-size = "2G"\n'
        "unlocked = false\nlimit-cpu = 60"
    )
    with pytest.raises(PolicyError) as error:
        ceiling(text).check_packages(["b", "a", "c"])
    lines = error.value.hint
    assert lines[0].endswith("cat >>/p0.toml ) <<'END'") and lines[-1] == "END"
    before, after = (tomllib.loads(part)["worker"] for part in (f'[worker."*"]\n{text}', "\n".join(lines[1:-1])))
    assert after == {"t": {**before["*"], "packages": ["a", "b", "c"], "package-hosts": ["files.example:443", "[::1]:8443"],
                           "limit-cpu": "60s"}}  # fmt: skip


def test_hosts_lie_in_every_file_and_of_two_sizes_the_smaller_holds() -> None:
    assert ceiling('package-hosts = ["a.example", "b.example:8443"]', 'package-hosts = ["b.example:8443"]').package_hosts == (
        ("b.example", 8443),
    )  # fmt: skip
    assert ceiling('package-hosts = ["a.example"]', 'package-hosts = ["a.example:444"]').package_hosts == ()
    for order in (("1G", "64M"), ("64M", "1G")):
        bound = ceiling(*(f'packages-size = "{size}"' for size in order))
        assert bound.packages_limits == PackagesLimits(8 << 20, 64 << 20, 2500)
    assert ceiling("", 'packages-size = "2G"').packages_limits == PackagesLimits(256 << 20, 2 << 30, 80_000)


@pytest.mark.parametrize(
    ("texts", "refused"),
    [
        (("",), ""),
        (('packages = ["*"]',), ""),
        ((f'index = "{INDEX}"\npackage-hosts = ["files.example"]',), ""),
        ((f'index = "{INDEX}"', 'package-hosts = ["files.example"]'), ""),
        ((f'index = "{INDEX}"',), "/p0.toml:2 has index"),
        (('packages = ["*"]', 'packages = ["a", "b-*"]'), "/p1.toml:2 has packages"),
        (("packages = []",), "/p0.toml:2 has packages"),
    ],
)
def test_a_bounded_origin_takes_no_wheel_by_url_from_a_host_that_is_not_listed(
    texts: tuple[str, ...], refused: str
) -> None:
    bound = ceiling(*texts)
    urls = [("h.example", 8443), ("files.example", 443), ("files.example", 443)]
    if not refused:
        bound.check_urls("pylock.toml", urls)
        assert bound.package_hosts != ()
        return
    assert bound.package_hosts == ()
    with pytest.raises(PolicyError) as error:
        bound.check_urls("pylock.toml", urls)
    assert str(error.value) == f"pylock.toml names wheels by URL, and {refused} without package-hosts"
    hint = "\n".join(error.value.hint)
    assert "package-hosts = [" in hint and "files.example" in hint and "h.example:8443" in hint


def test_scripts_without_a_lock_need_a_yes_and_no_no() -> None:
    for texts, allowed in [
        (("unlocked = true",), True),
        (("unlocked = true", ""), True),
        (("unlocked = true", "unlocked = true"), True),
        (("unlocked = false", "unlocked = true"), False),
        (("unlocked = true", "unlocked = false"), False),
        (("", ""), False),
    ]:
        bound = ceiling(*texts)
        assert bound.allows_unlocked is allowed
        if allowed:
            bound.check_unlocked("https://example.com/w.py")
            continue
        source = next((f"/p{n}.toml:2" for n, text in enumerate(texts) if "false" in text), "the default policy")
        with pytest.raises(PolicyError) as error:
            bound.check_unlocked("https://example.com/w.py")
        assert str(error.value).startswith("https://example.com/w.py has dependencies and no lock, ")
        assert f", which {source} does not allow; " in str(error.value)
        assert "unlocked = true" in "\n".join(error.value.hint)


def test_two_files_that_name_different_indexes_allow_none() -> None:
    assert ceiling(f'index = "{INDEX}"', f'index = "{INDEX}/"').index == INDEX
    bound = ceiling(f'index = "{INDEX}"', '\nindex = "https://other.example/"')
    with pytest.raises(PolicyError) as error:
        _ = bound.index
    assert str(error.value) == (
        f"/p1.toml:3 has index = 'https://other.example/', and /p0.toml:2 has '{INDEX}': no index is allowed by both"
    )
    assert f'index = "{INDEX}"' in error.value.hint


def test_the_most_specific_section_of_each_file_decides(tmp_path: Path) -> None:
    system, user = tmp_path / "system.toml", tmp_path / "user.toml"
    system.write_text('[worker."*"]\npackages = ["a"]\n[worker."t:1"]\npackages = ["a", "b"]\n')
    user.write_text('[worker.t]\npackages = ["*"]\npackages-size = "1G"\n[worker."*"]\npackages = []\n')
    for path in (system, user):
        path.chmod(0o600)
    bound = ceiling_for(worker(), system=[str(system)], user=str(user), required=True, data="/data")
    bound.check_packages(["a", "b"])
    with pytest.raises(PolicyError, match=f"'c', which {system}:4 does not allow"):
        bound.check_packages(["b", "c"])
    assert bound.packages_limits.unpacked_max == 1 << 30


@pytest.mark.parametrize(
    "fields",
    [
        {"index": INDEX, "packageIndex": INDEX, "package-index": INDEX, "indexUrl": INDEX, "PIP_INDEX_URL": INDEX},
        {"packages": "*", "unlocked": "true", "packagesSize": "1T", "packages-size": "1T", "packageHosts": "evil.example"},
        {"policy": '[worker."*"]\nunlocked = true', "tool": "{}", "worker": INDEX},
    ],
)  # fmt: skip
def test_a_hash_chooses_neither_index_nor_packages(fields: dict[str, str]) -> None:
    config = worker(**fields)
    assert config == worker()
    bound = ceiling("packages = []", config=config)
    assert (bound.index, bound.package_hosts, bound.allows_unlocked) == (None, (), False)
    assert bound.packages_limits == ceiling().packages_limits
    with pytest.raises(PolicyError):
        bound.check_packages(["a"])


@pytest.mark.parametrize(
    "flag", ["--index-url=https://evil.example", "--index=x", "--extra-index-url=x", "--unlocked", "--packages=*"]
)
def test_flags_about_packages_in_a_hash_are_refused(flag: str) -> None:
    for field in ("options", "denoOptions"):
        with pytest.raises(ConfigError, match=f"field {field} of t:1:h has '--"):
            worker(**{field: flag})


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("text", "act"),
    [
        ('packages = ["a"]', lambda bound: bound.check_packages(["a", "b"])),
        ("unlocked = false", lambda bound: bound.check_unlocked("https://example.com/w.py")),
        ("pinned = false", lambda bound: bound.check_unlocked("https://example.com/w.py")),
        (f"index = '{INDEX}/x' # mine", lambda bound: bound.index),
    ],
)
def test_each_hint_is_pasted_and_then_the_policy_allows_it(
    tmp_path: Path, text: str, own: bool, act: Callable[[Ceiling], object]
) -> None:
    system, user = tmp_path / "system.toml", tmp_path / "my folder" / "user.toml"
    user.parent.mkdir(mode=0o700)
    system.write_text(f'[worker."*"]\nindex = "{INDEX}"\n' if "index" in text else "")
    user.write_text(f'[worker."{"t" if own else "*"}"]\nlimit-cpu = "1h"\n{text}\n')
    for path in (system, user):
        path.chmod(0o600)

    def bound() -> Ceiling:
        return ceiling_for(worker(), system=[str(system)], user=str(user), required=True, data="/data")

    with pytest.raises(PolicyError) as error:
        act(bound())
    done = paste("\n".join(error.value.hint), {"PATH": os.environ["PATH"]}, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    act(bound())
    assert [section.limits["cpu"] for section in bound().sections[-1:]] == [3600]
    if not own:  # nobody else is given more
        sections = tomllib.loads(user.read_text())["worker"]
        assert sections["*"] == tomllib.loads(f'limit-cpu = "1h"\n{text}')


@pytest.mark.parametrize("name", ['t"]\nunlocked = true\n[worker."*', "t]\n", "t\nindex"])
def test_text_of_a_hash_cannot_become_a_line_of_a_policy_through_a_hint(name: str) -> None:
    with pytest.raises(PolicyError) as error:
        ceiling("packages = []").check_packages([name])
    text = "\n".join(error.value.hint[1:-1])
    assert tomllib.loads(text) == {"worker": {"t": {"packages": [name]}}}
    assert "\n" not in str(error.value)
    with pytest.raises(SandboxrunError):
        parse_worker(name, "1", {}, {b"url": b"/x", b"version": b"local"})
