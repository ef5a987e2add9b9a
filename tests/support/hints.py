"""The hints in the source, by their templates, and how a test follows one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "sandboxrun"
PASTE_SECONDS = 60
# Behind an agent in the background: end it, once it is there.
DRAIN = "until sandboxrun drain 2>/dev/null; do sleep 0.1; done; wait $!"


def templates(folder: str) -> dict[str, str]:
    """Each hint below `sandboxrun/FOLDER` (or of that file), with `{}` for what is filled in -> where it stands.

    A hint is the argument `hint=` of a call, or what a function called `…_hint` returns; of a tuple, the lines are joined
    by newlines.
    """
    found: dict[str, str] = {}
    start = SOURCE / folder
    for path in sorted(start.rglob("*.py")) if start.is_dir() else [start]:
        for node in ast.walk(ast.parse(path.read_text())):
            for value in _hints(node):
                for text in _texts(value):
                    found.setdefault(text, f"{path.relative_to(SOURCE.parent)}:{value.lineno}")
    found.pop("", None)
    return found


def _hints(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        return [word.value for word in node.keywords if word.arg == "hint"]
    if isinstance(node, ast.FunctionDef) and node.name.endswith("_hint"):
        return [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value is not None]
    return []


def _texts(value: ast.expr) -> list[str]:
    """The templates of an expression; none for a name or a call, because their hints stand elsewhere."""
    if isinstance(value, ast.Constant):
        return [value.value] if isinstance(value.value, str) else []
    if isinstance(value, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values)]
    if isinstance(value, ast.IfExp):
        return _texts(value.body) + _texts(value.orelse)
    if isinstance(value, ast.BoolOp):
        return [text for each in value.values for text in _texts(each)]
    if isinstance(value, ast.Tuple):
        lines = [_texts(each) for each in value.elts]
        return ["\n".join(line[0] if line else "{}" for line in lines)]
    if isinstance(value, ast.BinOp):
        left, right = _texts(value.left), _texts(value.right)
        return [(left[0] if left else "{}") + (right[0] if right else "{}")]
    return []


def hint_of(stderr: str) -> str:
    """The text after the last `hint: ` on the standard error of a command, with the lines below it."""
    _, found, hint = stderr.rpartition("hint: ")
    assert found, f"there is no hint in:\n{stderr}"
    return hint.rstrip("\n")


def is_of(template: str, hint: str) -> bool:
    """Whether `hint` was made from `template`."""
    pattern = "".join("[^\n]*" if part == "{}" else re.escape(part) for part in re.split(r"(\{\})", template))
    return re.fullmatch(pattern, hint) is not None


def paste(
    hint: str, env: dict[str, str], folder: Path, *, stdin: str = "", **placeholders: str
) -> subprocess.CompletedProcess[str]:
    """Run `hint` in a shell, as somebody does who pastes it. `placeholders`: values for its words in capitals."""
    for word, value in placeholders.items():
        assert re.search(rf"\b{word}\b", hint), f"there is no {word} in: {hint}"
        hint = re.sub(rf"\b{word}\b", value.replace("\\", r"\\"), hint)
    env = {**env, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}  # as in an environment that is active
    return subprocess.run(
        ["sh", "-ec", hint], env=env, cwd=folder, input=stdin, capture_output=True, text=True, timeout=PASTE_SECONDS
    )
