"""README's picture, made once more at a real terminal."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = DOCS / "dev.svg"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    import record_picture

    return record_picture


@pytest.mark.timeout(300)
def test_the_picture_shows_what_readmes_worker_prints(tmp_path: Path, recorder: Any) -> None:
    from record_walk import reduced

    new = tmp_path / "dev.svg"
    done = subprocess.run(
        [sys.executable, str(DOCS / "record_picture.py"), str(new)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    # Sorted, because what the worker prints and its reply take different ways.
    shown, kept = (sorted(reduced(" ".join(recorder.words(path.read_text()))).split()) for path in (new, PICTURE))
    assert shown == kept
    # README quotes the first words of the refusal.
    quoted = re.findall(r"^Requires .+$", (DOCS.parent / "README.md").read_text(), re.MULTILINE)
    assert quoted
    assert all(line in " ".join(recorder.words(new.read_text())) for line in quoted)


def test_the_picture_is_small_has_text_and_follows_the_readers_colours() -> None:
    picture = PICTURE.read_text()
    assert len(picture) < 8000
    assert "prefers-color-scheme: dark" in picture
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()}
    assert tags == {"svg", "title", "style", "rect", "text"}


def test_a_picture_of_other_words_differs(recorder: Any) -> None:
    lines = ["$ sandboxrun dev greeter", "", "Requires <read> access & more " + "word " * 40]
    picture = recorder.svg(lines)
    assert recorder.words(picture) == " ".join(lines).split()
    assert recorder.words(recorder.svg([*lines, "more"])) != recorder.words(picture)


def test_what_is_left_out_is_the_password_and_what_a_reply_says_of_an_error(recorder: Any) -> None:
    text = (
        '…: export REDIS_URL=redis://:secret@127.0.0.1:1\n500 in 2 ms\n{\n  "err": {\n    "a": 1\n  }\n}\ngreeter> exit'
    )
    assert recorder.shortened(text) == ["…: export REDIS_URL=…", "500 in 2 ms", "{ … }", "greeter> exit"]


def test_a_reply_amid_a_traceback_is_shown_below_it(recorder: Any) -> None:
    traceback = [
        "Traceback:",
        '  File "/usr/lib/python3.11/pathlib.py", line 1',
        "    return io.open(self)",
        "PermissionError: 13",
    ]
    reply = ["500 in 2 ms", "{", '  "err": 1', "}"]
    wanted = ["Traceback:", "PermissionError: 13", "500 in 2 ms", "{ … }", "greeter> exit"]
    for at in range(len(traceback) + 1):
        lines = [*traceback[:at], *reply, *traceback[at:], "greeter> exit"]
        assert recorder.shortened("\n".join(lines) + "\n") == wanted


def test_a_prompt_that_was_written_over_is_not_shown(recorder: Any, tmp_path: Path) -> None:
    walk = recorder.Walk(tmp_path, "")
    assert (
        walk.plain("greeter> name=1\r\ngreeter> \r  File x\r\ngreeter> \r\n")
        == "greeter> name=1\n  File x\ngreeter> \n"
    )
