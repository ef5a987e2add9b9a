"""Digests are written into a script's block, and nothing else of the script changes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrun.config.block import read_block
from sandboxrun.errors import ScriptError
from sandboxrun.packages.edit import with_digests

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32


def edited(source: str, files: dict[str, str] | None = None, lock: str | None = None) -> str:
    block = read_block(source.encode(), "w.py")
    newer = "" if block is None else block.exclude_newer
    return with_digests(source.encode(), files=files or {}, lock=lock, origin="w.py", exclude_newer=newer).decode()


def test_a_script_without_a_block_gets_one_above_its_docstring() -> None:
    made = f'# /// script\n# [tool.sandboxrun]\n# lock = "sha256:{C}"\n# [tool.sandboxrun.files]\n# "a.py" = "sha256:{A}"\n# ///\n'
    for head in (
        "",
        "#!/usr/bin/env python3\n",
        "#!/bin/x\n# -*- coding: utf-8 -*-\n",
        "# vim: set fileencoding=utf-8 :\n",
    ):
        for rest in ('"""Doc."""\nimport os\n', "# Copyright\n# ///\nimport os", "x = 1"):
            assert edited(head + rest, {"a.py": A}, C) == f"{head}{made}\n{rest}"
    assert edited("\nimport os\n", {"a.py": A}, C) == f"{made}\nimport os\n"
    assert edited("", {"a.py": A}, C) == made
    assert edited("#!/bin/x", {"a.py": A}, C) == f"#!/bin/x\n{made}"


def test_nothing_to_write_changes_nothing() -> None:
    assert edited("x = 1") == "x = 1"
    source = '# /// script\n# dependencies = ["a"]\n# ///\n'
    assert edited(source) == source


def test_line_endings_and_a_byte_order_mark_stay() -> None:
    made = with_digests(b"\xef\xbb\xbf#!/bin/x\r\nx = 1\r\n", files={}, lock=C, origin="w.py")
    assert made == (
        b"\xef\xbb\xbf#!/bin/x\r\n# /// script\r\n# [tool.sandboxrun]\r\n"
        b'# lock = "sha256:' + C.encode() + b'"\r\n# ///\r\n\r\nx = 1\r\n'
    )
    again = with_digests(made, files={"a.py": A}, lock=None, origin="w.py")
    assert again.count(b"\n") == again.count(b"\r\n")


FULL = f"""\
#!/usr/bin/env python3
# -*- coding: utf-8 -*-
# /// script
#
# # packages
# dependencies = [  # two
#   "a",
#   "b; python_version > '3'",   # [files]
# ]
# [tool.uv]
# index-url = "https://evil.example/simple"
#
# [tool.sandboxrun]  # ours
# lock   =  "sha256:{A}"   # of requirements.lock
# exclude-newer = "2026-11-30"
# [tool.sandboxrun.files]
# # sources
# "z.py" = 'sha256:{A}'  # first
# gone = "sha256:{A}"
# "a.py" = "sha256:{A}"
#
# [tool.other]
# x = '''
# [tool.sandboxrun]
# lock = "no"
# '''
# ///
x = 1
# /// more
# lock = 1
# ///
"""


def test_only_the_digests_change() -> None:
    expected = (
        FULL.replace(f'"sha256:{A}"   # of', f'"sha256:{C}"   # of')
        .replace(f"'sha256:{A}'  # first", f'"sha256:{B}"  # first')
        .replace(f'# gone = "sha256:{A}"\n', "")
        .replace(f'# "a.py" = "sha256:{A}"\n', f'# "a.py" = "sha256:{A}"\n# "new/b.html" = "sha256:{B}"\n')
    )
    assert edited(FULL, {"z.py": B, "a.py": A, "new/b.html": B}, C) == expected
    assert edited(FULL, {"z.py": A, "gone": A, "a.py": A}, A) == FULL


def test_a_table_in_one_line_stays_in_one_line() -> None:
    source = f'# /// script\n# tool.sandboxrun.files = {{"a.py"="sha256:{A}"}}  # all\n# ///\n'
    assert edited(source, {"a.py": A}) == source
    assert edited(source, {"b.py": B, "a.py": A}) == (
        f'# /// script\n# tool.sandboxrun.files = {{ "a.py" = "sha256:{A}", "b.py" = "sha256:{B}" }}  # all\n# ///\n'
    )
    table = source.replace("# tool.sandboxrun.files", "# [tool.sandboxrun]\n# files")
    assert edited(table, {}, C) == f'# /// script\n# [tool.sandboxrun]\n# lock = "sha256:{C}"\n# ///\n'


def test_a_lock_is_added_where_there_are_only_files() -> None:
    source = f'# /// script\n# [tool.sandboxrun.files]\n# "a.py" = "sha256:{A}"\n# ///\n'
    block = read_block(edited(source, {"a.py": A}, C).encode(), "w.py")
    assert block is not None
    assert (block.files, block.lock) == ((("a.py", A),), C)


@pytest.mark.parametrize(
    "line",
    ['tool = {sandboxrun = {exclude-newer = "2026"}}', f'tool.sandboxrun.files."b.py" = "sha256:{A}"'],
)
def test_what_cannot_be_edited_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(ScriptError, match=r"w\.py:2 has a block whose table \[tool.sandboxrun\] cannot be edited"):
        edited(f"x = 1\n# /// script\n# {line}\n# ///\n", {"a.py": A, "b.py": A})


def test_a_date_is_set_changed_and_removed() -> None:
    source = "# /// script\n# [tool.sandboxrun]  # ours\n# ///\n"

    def dated(date: str, source: str = source) -> str:
        return with_digests(source.encode(), files={}, lock=None, origin="w.py", exclude_newer=date).decode()

    assert dated("2026-01-02") == source.replace("ours\n", 'ours\n# exclude-newer = "2026-01-02"\n')
    assert dated("2026-05-06", dated("2026-01-02")) == dated("2026-05-06")
    assert dated("", dated("2026-01-02")) == source


def test_names_that_no_script_can_list_are_refused() -> None:
    with pytest.raises(ScriptError, match="which differ in case alone"):
        edited("x = 1\n", {"a.py": A, "A.py": A})
    with pytest.raises(ScriptError, match="at most 200 files"):
        edited("x = 1\n", {f"{number}.py": A for number in range(201)})


def test_an_unclosed_block_gets_no_second_one() -> None:
    with pytest.raises(ScriptError, match=r"w\.py:2 has a block `# /// script` that no line `# ///` closes"):
        edited("x = 1\n# /// script\n# dependencies = []\nimport os\n", {"a.py": A})


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ScriptError, match=r"w\.py is not UTF-8"):
        with_digests(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n# /// script\n", files={}, lock=C, origin="w.py")


NAMES = st.lists(st.from_regex(r"[a-z_-][a-z0-9._-]{0,8}", fullmatch=True), max_size=5, unique=True)
DIGESTS = st.sampled_from([A, B, C])
COMMENT = st.sampled_from(["", "  # a", ' # "sha256:', "\t# [files] {"])
BETWEEN = st.lists(st.sampled_from(["#", "# # note", "# ", "#  "]), max_size=2)


@st.composite
def scripts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A script in one of the forms that a block can have, and its lines that no edit may change."""
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    lock, files = draw(st.none() | DIGESTS), draw(st.dictionaries(st.sampled_from(["a.py", "b/c.txt", "d"]), DIGESTS))
    kept, lines = [], []

    def keep(*some: str) -> None:
        kept.extend(some)
        lines.extend(some)

    keep(*draw(st.lists(st.sampled_from(["#!/bin/x", "import os", "", "# no block", "x = '''a'''"]), max_size=3)))
    keep("# /// script", *draw(BETWEEN))
    keep(*draw(st.sampled_from([(), ('# dependencies = ["a", # ]', '# "b"', "# ]"), ("# [tool.uv]", '# x = "[["')])))
    form = draw(st.sampled_from(["inline", "table", "none"]))
    if form != "none":
        keep("# [tool.sandboxrun]" + draw(COMMENT), *draw(BETWEEN))
        if lock is not None:
            lines.append(f'# lock = "sha256:{lock}"' + draw(COMMENT))
        keep(*draw(BETWEEN))
        if form == "inline":
            lines.append(
                "# files = {" + ", ".join(f'"{n}"="sha256:{d}"' for n, d in files.items()) + "}" + draw(COMMENT)
            )
        else:
            lines.append("# [tool.sandboxrun.files]" + draw(COMMENT))
            for name, digest in files.items():
                lines.append(f"# \"{name}\" = 'sha256:{digest}'" + draw(COMMENT))
                keep(*draw(BETWEEN))
    keep(*draw(st.sampled_from([(), ("# [tool.z]", '# lock = """', "# [tool.sandboxrun]", '# """')])))
    keep("# [tool.y]", "# ///", *draw(st.lists(st.sampled_from(["print(1)", "# end", ""]), max_size=3)))
    return ending.join(lines), [line + ending for line in kept]


@given(scripts(), st.dictionaries(st.sampled_from(["a.py", "b/c.txt", "e.html"]), DIGESTS), st.none() | DIGESTS)
def test_any_edit_says_what_is_wanted_and_keeps_all_other_lines(
    script: tuple[str, list[str]], files: dict[str, str], lock: str | None
) -> None:
    source, kept = script
    before = read_block(source.encode(), "w.py")
    changed = edited(source, files, lock)
    after = read_block(changed.encode(), "w.py")
    assert before is not None and after is not None
    assert (after.files, after.lock) == (tuple(sorted(files.items())), lock)
    assert (after.dependencies, after.exclude_newer) == (before.dependencies, before.exclude_newer)
    lines = iter(changed.splitlines(keepends=True))
    ends = kept[:-1]  # the last line has no end
    assert all(line in lines for line in ends)  # in their order
    assert edited(changed, files, lock) == changed
    back = edited(changed, dict(before.files), before.lock)
    if (list(files), lock is None) == ([name for name, _ in before.files], before.lock is None):
        assert read_block(back.encode(), "w.py") == before


@given(st.text(st.sampled_from("#/ script\nx'\"\\=[]{}\r!"), max_size=60), NAMES)
def test_any_text_is_edited_or_refused(text: str, names: list[str]) -> None:
    source = text.encode()
    try:
        changed = with_digests(source, files=dict.fromkeys(names, A), lock=C, origin="w.py")
    except ScriptError:
        return
    block = read_block(changed, "w.py")
    assert block is not None and block.lock == C
    assert sorted(dict(block.files)) == sorted(names)


def test_a_script_still_runs_with_its_block() -> None:
    made = edited('#!/bin/x\n"""Doc."""\nfrom __future__ import annotations\nprint(__doc__)\n', {"a.py": A}, C)
    done = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True)
    assert done.stdout == "Doc.\n"
