"""The parts that the tests of hints stand on, each shown to fail where it must."""

from __future__ import annotations

from pathlib import Path

import hints
import pytest
from runner import Runner


def test_a_template_of_each_form_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.py").write_text(
        "raise E('a', hint=f'set {key} x')\n"
        "raise E('b', hint='one' if c else 'two')\n"
        "raise E('c', hint=('first', f'second {x}'))\n"
        "raise E('d', hint=a_hint(1))\n"
        "def a_hint(n):\n    return f'n {n}'\n"
    )
    monkeypatch.setattr(hints, "SOURCE", tmp_path)
    assert set(hints.templates("m.py")) == {"set {} x", "one", "two", "first\nsecond {}", "n {}"}


def test_a_hint_is_told_from_another() -> None:
    assert hints.is_of("set {} x={}", "set t:1:h x=a b")
    assert not hints.is_of("set {} x", "set t:1:h y") and not hints.is_of("a {}", "a b\nc")


def test_what_is_pasted_runs_with_the_users_commands(run: Runner) -> None:
    done = hints.paste("sandboxrun --version && echo URL", run.env, run.home, URL="x://y")
    assert done.returncode == 0 and done.stdout.endswith("x://y\n"), done


def test_what_fails_when_pasted_is_seen(run: Runner) -> None:
    assert hints.paste("false; true", run.env, run.home).returncode == 1
    with pytest.raises(AssertionError, match="no hint"):
        hints.hint_of("error: x\n")
