"""Both forms of a lock: what is read, and the one line for what is refused."""

from __future__ import annotations

import contextlib
import time

import pytest

from sandboxrun.errors import ScriptError
from sandboxrun.packages.lock import LOCK_MAX_BYTES, Locked, read_lock
from sandboxrun.packages.wheels import applicable

A, B = "a" * 64, "b" * 64
UV = f"""\
# This file was made by a tool
#    tool compile --generate-hashes
Jinja2==3.1.6 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via flask
typing_extensions==4.16.0 ; python_version < '3.13' \\
    --hash=sha256:{A}  # a comment
zope.interface[testing]==7!1.0rc1+local --hash sha256:{B}
"""
PYLOCK = f"""\
lock-version = "1.0"
created-by = "a tool"

[[packages]]
name = "Jinja2"
version = "3.1.6"
marker = "python_version >= '3'"
sdist = {{ url = "https://files.example/j/jinja2-3.1.6.tar.gz", hashes = {{ sha256 = "{B}" }} }}
wheels = [
    {{ name = "jinja2-3.1.6-py3-none-any.whl", url = "https://files.example/j/jinja2-3.1.6-py3-none-any.whl", hashes = {{ sha256 = "{A}" }} }},
]
"""


def refusal(data: bytes | str, name: str = "requirements.lock") -> str:
    with pytest.raises(ScriptError) as error:
        read_lock(data.encode() if isinstance(data, str) else data, name)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_hashed_requirements_are_read_as_pip_reads_them() -> None:
    lock = read_lock(UV.encode(), "requirements.lock")
    assert lock.packages == (
        Locked("jinja2", "3.1.6", (A, B)),
        Locked("typing-extensions", "4.16.0", (A,), marker="python_version < '3.13'"),
        Locked("zope-interface", "7!1.0rc1+local", (B,)),
    )
    assert len(lock.sha256) == 64
    assert read_lock(UV.replace("\n", "\r\n").encode(), "requirements.lock").packages == lock.packages
    assert read_lock(b"# nothing\n\n", "requirements.lock").packages == ()


def test_wheels_of_pep_751_are_read() -> None:
    lock = read_lock(PYLOCK.encode(), "pylock.worker.toml")
    url = "https://files.example/j/jinja2-3.1.6-py3-none-any.whl"
    assert lock.packages == (Locked("jinja2", "3.1.6", (A,), ((url, A),), "python_version >= '3'"),)


@pytest.mark.parametrize("variable", ["platform_release", "platform_version", "platform.version"])
def test_a_marker_that_asks_for_the_kernel_says_the_same_under_each(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or another package would be approved under a new kernel than was installed under the old one."""
    text = f"a==1 ; {variable} == '6.1' --hash=sha256:{A}\nb==1 ; {variable} >= '20.0' --hash=sha256:{B}\nc==1 --hash=sha256:{A}\n"
    lock = read_lock(text.encode(), "requirements.lock")
    for release in ("6.1", "20.0", "6.8.0-45-generic"):
        monkeypatch.setattr("platform.release", lambda release=release: release)
        monkeypatch.setattr("platform.version", lambda release=release: release)
        assert [package.name for package in applicable(lock)] == ["c"]


def test_one_package_may_have_two_versions_with_markers() -> None:
    text = f"a==1 ; python_version < '3' --hash=sha256:{A}\na==2 ; python_version >= '3' --hash=sha256:{B}\n"
    assert [package.version for package in read_lock(text.encode(), "requirements.lock").packages] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("-r other.txt", "an option"),
        ("--index-url http://127.0.0.1/simple/", "an option"),
        ("-e .", "an option"),
        ("--find-links=/tmp", "an option"),
        (f"x @ file:///etc/passwd --hash=sha256:{A}", "names a URL"),
        (f"git+https://h/x --hash=sha256:{A}", "names a URL"),
        (f"https://h/x-1-py3-none-any.whl --hash=sha256:{A}", "names a URL"),
        (f"./x-1-py3-none-any.whl --hash=sha256:{A}", "a path"),
        (f"x-1-py3-none-any.whl --hash=sha256:{A}", "a path"),
        ("x==1", "x without a hash"),
        (f"x --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x>=1 --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x==1.* --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x===1 --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x==1,>0 --hash=sha256:{A}", "expected NAME==VERSION"),
        ("x==1 --hash=md5:d41d8cd98f00b204e9800998ecf8427e", "the hash 'md5:d41d8"),
        (f"x==1 --hash=sha256:{A}a", "the hash 'sha256:aaaa"),
        (f"x==1 --hash=sha256:{A} --hash=md5:d41d8cd98f00b204e9800998ecf8427e", "the hash 'md5:"),
        (f"x==1 --hash=sha256:{A} --config-settings=x=y", "the hash 'sha256:aaaa"),
        (f"x==1 --global-option=x --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x==1 ; sys_platform = 'linux' --hash=sha256:{A}", "which is none of PEP 508"),
        (f"x==1 ; {'(' * 400}python_version>'3'{')' * 400} --hash=sha256:{A}", "which is none of PEP 508"),
        (f"x==1 ; os_name=='{'x' * 1000}' --hash=sha256:{A}", "a marker of more than 1000 characters"),
        (f"$HOME==1 --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x\0==1 --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"x==1\u2028-r y --hash=sha256:{A}", "expected NAME==VERSION"),
        (f"a==2 --hash=sha256:{B}", "a again; line 1 has the first"),
        ("x" * 5000, "more than 4096 characters"),
    ],
)
def test_anything_else_in_a_requirements_lock_is_refused_with_its_line(line: str, cause: str) -> None:
    text = refusal(f"a==1 --hash=sha256:{A}\n# a comment\n{line}\n")
    assert text.startswith("requirements.lock:3 has ")
    assert cause in text


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ('lock-version = "1.0"', 'lock-version = "2.0"', "pylock.toml:1 has lock-version '2.0'"),
        ('lock-version = "1.0"', "lock-version = 1", "pylock.toml:1 has lock-version '1'"),
        ('lock-version = "1.0"\n', "", "pylock.toml:1 has lock-version 'None'"),
        ("https://files", "http://files", "pylock.toml:4 has Jinja2 with the URL 'http://files"),
        ("https://files.example/j/jinja2-3.1.6-py3", "file:///j/jinja2-3.1.6-py3", "with the URL 'file:///j"),
        ("https://files.example/j/jinja2-3.1.6-py3", "https://u:p@h/j/jinja2-3.1.6-py3", "with the URL 'https://u:p"),
        ("any.whl\", hashes", "any.whl?x=1\", hashes", "with the URL"),
        ("url = \"https://files.example/j/jinja2-3.1.6-py3", "path = \"jinja2-3.1.6-py3", "a wheel without a URL"),
        ('name = "jinja2-3.1.6-py3', 'name = "jinja2-3.1.5-py3', "a wheel named 'jinja2-3.1.5"),
        (f'sha256 = "{A}"', 'md5 = "d41d8cd98f00b204e9800998ecf8427e"', "without hashes.sha256"),
        (f'sha256 = "{A}"', f'sha256 = "{A[:-1]}"', "without hashes.sha256"),
        ("wheels = [", "attestations = [", "Jinja2 3.1.6 as an sdist only"),
        ("sdist = {", "archive = {", "Jinja2 as archive"),
        ("sdist = {", "vcs = {", "Jinja2 as vcs"),
        ('version = "3.1.6"', 'version = "../x"', "with the version '../x'"),
        ('name = "Jinja2"', 'name = "../x"', "pylock.toml:4 has the package name '../x'"),
        ('name = "Jinja2"', "name = [1]", "the package name '[1]'"),
        ("python_version >= '3'", "python_version = '3'", "which is none of PEP 508"),
        ("created-by", f"x = \"\"\"\n'\"\"\"\n{'a.' * 40}b", "pylock.toml:2 has a string of several lines"),
        ("created-by", f"x = {{ y = 'it\"', {'a.' * 40}b = '\"' }}", "pylock.toml:2 has more than 4 dots outside of strings"),
        ("created-by", f"x = {{ y = \"\\\"'\", {'a.' * 40}b = \"'\" }}", "pylock.toml:2 has more than 4 dots outside of strings"),
        ("created-by", "x" * 5000, "pylock.toml:2 has more than 4096 characters"),
        ("[[packages]]", "[[packages", "pylock.toml:4 is not TOML"),
        ("created-by", f"{'a.' * 40}b", "pylock.toml:2 has more than 4 dots outside of strings"),
        ("created-by = \"a tool\"", f"x = {'[' * 2000}", "is not TOML"),
    ],
)  # fmt: skip
def test_anything_else_in_a_pylock_is_refused_with_its_line(old: str, new: str, cause: str) -> None:
    assert old in PYLOCK
    assert cause in refusal(PYLOCK.replace(old, new), "pylock.toml")


def test_a_lock_is_bounded() -> None:
    assert refusal(b"#" * (LOCK_MAX_BYTES + 1)) == "requirements.lock has more than 1 MiB"
    many = "".join(f"p{number}==1 --hash=sha256:{A}\n" for number in range(501))
    assert refusal(many) == "requirements.lock:501 has more than 500 packages"
    assert refusal(b"\n\n\xff\n") == "requirements.lock:3 is not UTF-8"


def test_a_requirement_with_its_continuation_lines_is_bounded() -> None:
    hashes = [f"    --hash=sha256:{number:064x}" for number in range(800)]
    assert (
        len(read_lock(" \\\n".join(["a==1", *hashes[:700]]).encode(), "requirements.lock").packages[0].digests) == 700
    )
    text = " \\\n".join([f"b==1 --hash=sha256:{A}\n\na==1", *hashes])
    assert refusal(text) == "requirements.lock:3 has more than 65536 characters with its continuation lines"
    assert refusal("\\\n" * 100_000).startswith("requirements.lock:1 has more than 65536 characters")


def seconds(text: str, name: str) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        with contextlib.suppress(ScriptError):
            read_lock(text.encode(), name)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("text", ["a{}x", "a=={}x", "a==1{}x", "a[b]{}x"])
def test_spaces_take_time_in_proportion_to_their_number(text: str) -> None:
    def spaced(lines: int) -> str:
        """The text with so many lines of spaces, each within the limit of a line."""
        return text.format((" " * 4000 + "\\\n") * lines) + f" --hash=sha256:{A}\n"

    assert seconds(spaced(16), "requirements.lock") < 12 * max(seconds(spaced(4), "requirements.lock"), 0.002)


def test_inline_packages_behind_many_lines_take_time_in_proportion() -> None:
    def inline(number: int) -> str:
        packages = (
            f'{{name="a{n}",version="1",wheels=[{{url="https://h.example/x/a{n}.whl",hashes={{sha256="{A}"}}}}]}},\n'
            for n in range(number)
        )
        return "\n" * (number * 1000) + f'lock-version = "1.0"\npackages = [\n{"".join(packages)}]\n'

    assert len(read_lock(inline(2).encode(), "pylock.toml").packages) == 2
    assert seconds(inline(400), "pylock.toml") < 10 * seconds(inline(100), "pylock.toml")


@pytest.mark.parametrize("part", ["x", " ", "\\\n", "-", "x==1 ", "[", "#\n", "--hash=", ";(", "x.", "é"])
def test_hostile_text_of_a_megabyte_takes_no_time(part: str) -> None:
    text = part * (LOCK_MAX_BYTES // len(part.encode()))
    start = time.process_time()
    try:
        read_lock(text.encode(), "requirements.lock")
    except ScriptError:
        pass
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "part", ["a.a.a.a.a=1\n", "[[x]]\n", "x", '"\\"', "[a.a.a.a.a]\n", "{", "[", "'", "# .\n", "a=[\n", "\\"]
)
def test_hostile_toml_of_a_megabyte_takes_little_time(part: str) -> None:
    text = 'lock-version = "1.0"\n' + part * ((LOCK_MAX_BYTES - 30) // len(part.encode()))
    start = time.process_time()
    try:
        read_lock(text.encode(), "pylock.toml")
    except ScriptError:
        pass
    assert time.process_time() - start < 5
