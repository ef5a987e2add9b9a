"""The block of metadata in a script (PEP 723): what counts, what is refused, and how long it takes."""

from __future__ import annotations

import contextlib
import time

import pytest

from sandboxrun.config.block import read_block, unclosed_line
from sandboxrun.config.script import Block
from sandboxrun.errors import ScriptError

HEX = "ab" * 32


def block(*lines: str) -> bytes:
    return "\n".join(["# /// script", *(f"# {line}".rstrip() for line in lines), "# ///", "print(1)"]).encode()


def test_all_keys_are_read() -> None:
    source = b"#!/usr/bin/env python\n" + block(
        'requires-python = ">=3.11"',
        'dependencies = ["requests>=2", "rich"]',
        "",
        "[tool.uv]",
        'index-url = "https://evil.example/simple"',
        "[tool.sandboxrun]",
        f'lock = "sha256:{HEX}"',
        'exclude-newer = "2026-11-30"',
        f'files = {{ "pkg/b.py" = "sha256:{HEX}", "a.py" = "sha256:{HEX}" }}',
    )
    files = (("a.py", HEX), ("pkg/b.py", HEX))
    assert read_block(source, "w.py") == Block(2, 12, ">=3.11", ("requests>=2", "rich"), files, HEX, "2026-11-30")


@pytest.mark.parametrize(
    "source",
    [
        b"print(1)\n",
        b"# /// script\n# dependencies = []\nprint(1)\n",  # unclosed
        b"# /// script\n# ///\n",  # PEP 723: at least one line between
        b"#/// script\n# x = 1\n# ///\n",
        b"# /// script \n# x = 1\n# ///\n",
        b"# /// other\n# /// script\n# x = 1\n# ///\n",  # the content of another block
        b'X = """\n# /// script\n# dependencies = ["a"]\n# ///\n"""\n',
        b"X = '''it\\'''s\n# /// script\n# dependencies = [\"a\"]\n# ///\n'''\n",
        b"  # /// script\n  # x = 1\n  # ///\n",
    ],
)
def test_what_is_no_block(source: bytes) -> None:
    assert read_block(source, "w.py") is None


@pytest.mark.parametrize(
    "before", ['X = "it\'s"  # """', "X = '\\''", 'X = """a"""', "# it's", 'X = "# "; Y = \'"""\'']
)
def test_quotes_before_a_block_do_not_hide_it(before: str) -> None:
    source = before.encode() + b"\n" + block("dependencies = []")
    assert read_block(source, "w.py") == Block(2, 4)


def test_windows_lines_count() -> None:
    assert read_block(block('dependencies = ["a"]').replace(b"\n", b"\r\n"), "w.py") == Block(1, 3, "", ("a",))


def test_an_unclosed_block_can_be_told() -> None:
    assert unclosed_line(b"x = 1\n# /// script\n# dependencies = []\n") == 2
    assert unclosed_line(block("dependencies = []")) is None


WRONG = {
    "twice": (block("dependencies = []") + b"\n" + block("dependencies = []"), "w.py:5 has a second block"),
    "no TOML": (block("dependencies = [", "x"), "w.py:3 is not TOML"),
    "a long key": (block("a." * 32_000 + "a = 1"), "w.py:2 has 'a.a.a"),
    "nested": (block("x = " + "[" * 5000), "w.py:2 is not TOML: nested too deep"),
    "long": (block(*["# " + "x" * 100] * 700), "w.py:1 has a block of more than 64 KiB"),
    "key": (block("[tool.sandboxrun]", "file = 1"), "w.py:3 has file = '1': expected one of the keys files, lock"),
    "python": (block('requires-python = "; import os"'), "w.py:2 has requires-python"),
    "top": (block('dependancies = ["a"]'), "w.py:2 has dependancies = \"['a']\": expected one of the keys dependencies"),
    "table": (block("[tool.sandboxrunn]"), "w.py:2 has [tool.sandboxrunn]: expected [tool.sandboxrun]"),
    "tool": (block("tool = 1"), "w.py:2 has tool"),
    "digest": (block("[tool.sandboxrun]", 'lock = "md5:1"'), "w.py:3 has lock = 'md5:1': expected \"sha256:\""),
    **{
        requirement: (block(f'dependencies = ["{requirement}"]'), "w.py:2 has dependencies = ")
        for requirement in (
            "requests>=2\\n-e .", "x @ file:///etc/passwd", "git+https://h/x", "-r x", "--index-url=https://h", "../x", "x; y @ z", "/x", "",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_block_is_refused_with_its_line(name: str) -> None:
    source, message = WRONG[name]
    with pytest.raises(ScriptError) as error:
        read_block(source, "w.py")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "path",
    ["../x", "/x", "a\\\\b", "a//b", "a/", "", ".x", "a/.b/c", "x" * 300, "a\\u0000", "ü.py", "sandboxrun/x.py",
     "sandboxrun.py", "Sandboxrun/a.py", "/".join("abcdefghi"), "a b", "..", ".", "__pycache__/a.pyc", "a/__PYCACHE__/b"],
)  # fmt: skip
def test_the_name_of_a_file_is_refused(path: str) -> None:
    with pytest.raises(ScriptError, match=r"w\.py:[0-9]+ has the file"):
        read_block(block("[tool.sandboxrun.files]", f'"{path}" = "sha256:{HEX}"'), "w.py")


@pytest.mark.parametrize("others", [("A.py", "a.py"), ("pkg", "pkg/a.py"), ("PKG", "pkg/a.py")])
def test_names_that_cannot_lie_beside_each_other_are_refused(others: tuple[str, str]) -> None:
    with pytest.raises(ScriptError, match=r"which differ in case alone|below another file"):
        read_block(block("[tool.sandboxrun.files]", *(f'"{path}" = "sha256:{HEX}"' for path in others)), "w.py")


def test_201_files_are_refused() -> None:
    files = [f'"f{number}.py" = "sha256:{HEX}"' for number in range(201)]
    with pytest.raises(ScriptError, match="at most 200 files"):
        read_block(block("[tool.sandboxrun.files]", *files), "w.py")


HOSTILE = {
    "openings": lambda size: b"# /// script\n" * (size // 13),
    "openings and closings": lambda size: b"# /// script\n# ///\n" * (size // 19),
    "quotes": lambda size: b'"""' * (size // 6 * 2) + b"\n" + block("dependencies = []"),
    "words": lambda size: b"'a'\n" * (size // 4) + block("dependencies = []"),
    "backslashes": lambda size: b"'" + b"\\" * size + b"\n" + block("dependencies = []"),
    "blocks in a literal": lambda size: b"'''\n" + b"# /// script\n# x\n# ///\n\n" * (size // 24) + b"'''\n",
    "blocks after literals": lambda size: b"'''\n# /// script\n# x\n# ///\n'''\n" * (size // 31),
    "spaces": lambda size: block(f'dependencies = ["a{" " * (size // 64)}@"]'),
    "comments": lambda size: b"#\n" * (size // 2) + block("dependencies = []"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_time_in_proportion_to_its_length(name: str) -> None:
    def seconds(source: bytes) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            with contextlib.suppress(ScriptError):
                read_block(source, "w.py")
            times.append(time.process_time() - start)
        return min(times)

    # Sixteen times the length: 16 if in proportion, 256 if quadratic.
    assert seconds(HOSTILE[name](1 << 20)) < 64 * max(seconds(HOSTILE[name](1 << 16)), 0.002)


LONG = {
    "a key of many parts": ".".join(["a"] * 31_000) + " = 1",
    "a key of many quoted parts": " . ".join(['"a"'] * 12_000) + " = 1",
    "one long key": "a" * 62_000 + " = 1",
    "keys and spaces": "a" + " " * 62_000 + "= 1",
    "quotes": "x = " + "''" * 3 + "'\"" * 20_000 + "'" * 3,
    "many statements": "\n".join(f"a{number} = 1" for number in range(5_000)),
}


@pytest.mark.parametrize("name", LONG)
def test_no_content_of_a_block_takes_long(name: str) -> None:
    """tomllib takes half a minute for a key of 31,000 parts."""
    source = block(*LONG[name].split("\n"))
    start = time.process_time()
    with contextlib.suppress(ScriptError):
        read_block(source, "w.py")
    assert time.process_time() - start < 2


def test_a_key_of_many_parts_is_refused_with_its_line() -> None:
    with pytest.raises(ScriptError, match=r"w\.py:3 has 'a\.a\.a.*', a name of more than 16 parts"):
        read_block(block("[tool.x]", ".".join("a" * 17) + " = 1"), "w.py")
    found = read_block(
        block(f'dependencies = ["a>={".".join("1" * 15)}"]', "tool." + ".".join("b" * 15) + " = 1"), "w.py"
    )
    assert found is not None
