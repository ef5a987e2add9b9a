"""Every message that a user can read, from the source alone; or which of them two versions of the source do not share.

    python tests/tools/messages.py TREE            all of them, by file and function
    python tests/tools/messages.py OLD NEW         the changed ones; a pair for each that was reworded

A tree is a folder that contains sandboxrun/, or a commit of the repository in the current folder.
Errors are the exceptions that are made with a text; warnings, denials and findings are the arguments of the calls in CALLS;
usage is the text of the parsers. Values stand in the text as `{expression}`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import itertools
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

PACKAGE = "sandboxrun"
CALLS = {
    "warning": "warning", "warn": "warning", "_warn": "warning", "error": "error", "say": "warning", "_say": "warning",
    "denied": "denial", "_denied": "denial", "requirement": "denial",
    "note": "finding", "fails": "finding", "ok": "finding",
}  # fmt: skip
USAGE = frozenset({"help", "description", "epilog", "usage"})
PARSERS = frozenset({"Parser", "type_parser", "worker_parser", "add_argument"})
BUILT_IN = frozenset({"ValueError", "TypeError", "OSError", "ConnectionError", "TimeoutError", "SystemExit"})
ALIKE = 0.4  # of difflib's ratio over words: below it, one message went and another came


class Message(NamedTuple):
    """`function` is empty at the top of a module; `hint` has a line for each line to paste."""

    file: str
    function: str
    kind: str
    text: str
    hint: str

    @property
    def shown(self) -> str:
        hint = "".join(f"\nhint: {line}" for line in self.hint.splitlines())
        return f"{self.kind}: {self.text}{hint}"

    @property
    def place(self) -> str:
        return f"{self.file} {self.function}".rstrip()


def messages(tree: Path) -> list[Message]:
    """Of all modules below `tree/sandboxrun`, each once, in the order of files and lines."""
    sources = {path.relative_to(tree).as_posix(): path.read_text() for path in sorted(tree.glob(f"{PACKAGE}/**/*.py"))}
    modules = {file: ast.parse(text, file) for file, text in sources.items()}
    exceptions = _exceptions(modules.values())
    return list(
        dict.fromkeys(
            message for file, module in modules.items() for message in _of_scope(module, file, "", exceptions, {})
        )
    )


def _exceptions(modules: Iterator[ast.Module] | object) -> frozenset[str]:
    """The names of exceptions: those of the package, and the built-in ones that are raised with a text for users."""
    bases = {
        node.name: {_last(base) for base in node.bases}
        for module in modules  # type: ignore[attr-defined]
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    }
    known = {*BUILT_IN, "Exception", "BaseException", "KeyError"}
    while more := {name for name, of in bases.items() if of & known} - known:
        known |= more
    return frozenset(known - {"Exception", "BaseException", "KeyError"})


def _of_scope(
    scope: ast.AST, file: str, name: str, exceptions: frozenset[str], above: dict[str, list[str]]
) -> Iterator[Message]:
    """The messages of a module, class or function, then those of its inner ones. `above`: texts by the names that the
    scopes around it assign them to."""
    own, inner = _own(scope)
    assigned = defaultdict(list, above)
    for node in own:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            assigned[target] = [*assigned[target], *texts(node.value, assigned)]
    calls = [node for node in own if isinstance(node, ast.Call)]
    # Of a chain such as Parser(…).add_argument(…), the first call is the inner node.
    for call in sorted(calls, key=lambda node: (node.func.end_lineno, node.func.end_col_offset)):
        for kind, text, hint in _of_call(call, exceptions, assigned):
            yield Message(file, name, kind, text, hint)
    for node in own:
        if isinstance(node, ast.Return) and node.value is not None and name.endswith("Denial.__str__"):
            yield from (Message(file, name, "denial", text, "") for text in texts(node.value, assigned))
    for node in inner:
        yield from _of_scope(node, file, f"{name}.{node.name}".lstrip("."), exceptions, assigned)


def _own(scope: ast.AST) -> tuple[list[ast.AST], list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """The nodes below `scope`, and the definitions in it, whose nodes are not among them."""
    own: list[ast.AST] = []
    inner: list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = []
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner.append(node)
        else:
            own.append(node)
            waiting = [*ast.iter_child_nodes(node), *waiting]
    return own, inner


def _of_call(
    call: ast.Call, exceptions: frozenset[str], assigned: dict[str, list[str]]
) -> Iterator[tuple[str, str, str]]:
    """Kind, text and hint."""
    callee = _last(call.func)
    if callee in PARSERS:
        for word in call.keywords:
            if word.arg in USAGE:
                yield from (("usage", text, "") for text in texts(word.value, assigned))
        return
    kind = "error" if callee in exceptions else CALLS.get(callee, "")
    if not kind or not call.args:
        return
    literal = [found for arg in call.args if (found := texts(arg, assigned))]
    # log.warning("event", "message"), ok("area", "text"), note("area", "text", "what helps")
    named = kind == "finding" or (isinstance(call.func, ast.Attribute) and callee in ("warning", "error"))
    if named and len(call.args) > 1:
        literal = literal[1:]
    if not literal:
        return
    given = next((word.value for word in call.keywords if word.arg == "hint"), None)
    hints = texts(given, assigned) if given is not None else literal[1] if len(literal) > 1 else [""]
    for text, hint in itertools.zip_longest(literal[0], hints or [""], fillvalue=None):
        yield kind, literal[0][-1] if text is None else text, hints[-1] if hint is None and hints else hint or ""


def texts(value: ast.expr, assigned: dict[str, list[str]]) -> list[str]:
    """What an expression can give, with `{…}` for what only a run knows; nothing if it has no text of its own."""
    if isinstance(value, ast.Constant):
        return [value.value] if isinstance(value.value, str) and value.value else []
    if isinstance(value, ast.JoinedStr):
        parts = (str(part.value) if isinstance(part, ast.Constant) else _hole(part) for part in value.values)
        return ["".join(parts)]
    if isinstance(value, ast.IfExp):
        return texts(value.body, assigned) + texts(value.orelse, assigned)
    if isinstance(value, ast.BoolOp):
        return [text for each in value.values for text in texts(each, assigned)]
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        sides = [texts(side, assigned) or ["{" + ast.unparse(side) + "}"] for side in (value.left, value.right)]
        return ["".join(pair) for pair in itertools.product(*sides)]
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mod):
        return texts(value.left, assigned)
    if isinstance(value, ast.Tuple):
        lines = [texts(line, assigned) or ["{" + ast.unparse(line) + "}"] for line in value.elts]
        return ["\n".join(line[0] for line in lines)] if lines else []
    if isinstance(value, ast.Call) and _last(value.func) in ("escape", "str", "dedent", "mask") and value.args:
        return texts(value.args[0], assigned)
    return assigned.get(value.id, []) if isinstance(value, ast.Name) else []


def _hole(part: ast.expr) -> str:
    if not isinstance(part, ast.FormattedValue):
        return "{" + ast.unparse(part) + "}"
    return "{" + ast.unparse(part.value) + ("!r" if part.conversion == ord("r") else "") + "}"


def _last(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def changes(old: list[Message], new: list[Message]) -> list[tuple[Message | None, Message | None]]:
    """Pairs of the messages that are not the same in both; None where one went or came.

    A file that moved is no change of its messages. A reworded one is found in its own function first, then anywhere.
    """
    known = {(message.kind, message.text, message.hint) for message in old}
    kept = {(message.kind, message.text, message.hint) for message in new} & known
    gone = [message for message in old if message[2:] not in kept]
    come = [message for message in new if message[2:] not in kept]
    pairs: list[tuple[Message | None, Message | None]] = []
    for same in (_same_function, _same_file, lambda *_: True):
        near = [
            (difflib.SequenceMatcher(None, a.shown.split(), b.shown.split(), autojunk=False).ratio(), i, j)
            for i, a in enumerate(gone)
            for j, b in enumerate(come)
            if same(a, b) and a.kind == b.kind
        ]
        taken_old, taken_new = set(), set()
        for ratio, i, j in sorted(near, key=lambda row: (-row[0], row[1:])):
            if ratio >= ALIKE and i not in taken_old and j not in taken_new:
                taken_old.add(i)
                taken_new.add(j)
                pairs.append((gone[i], come[j]))
        gone = [message for i, message in enumerate(gone) if i not in taken_old]
        come = [message for j, message in enumerate(come) if j not in taken_new]
    pairs += [*((message, None) for message in gone), *((None, message) for message in come)]
    return sorted(pairs, key=lambda pair: (pair[1] or pair[0])[:3])  # type: ignore[index]  # one of the two is there


def _same_function(a: Message, b: Message) -> bool:
    return a.place == b.place


def _same_file(a: Message, b: Message) -> bool:
    return a.file == b.file


@contextlib.contextmanager
def tree_of(name: str) -> Iterator[Path]:
    """A folder as it is, a commit in a temporary folder."""
    if Path(name, PACKAGE).is_dir():
        yield Path(name)
        return
    done = subprocess.run(["git", "archive", "--format=zip", name, PACKAGE], capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {name} is neither a folder with {PACKAGE}/ in it nor a commit")
    with tempfile.TemporaryDirectory(prefix="messages-") as folder:
        with zipfile.ZipFile(BytesIO(done.stdout)) as archive:
            archive.extractall(folder)
        yield Path(folder)


def main(args: list[str]) -> int:
    if len(args) not in (1, 2) or args[0].startswith("-"):
        print(__doc__)
        return 64
    with contextlib.ExitStack() as stack:
        found = [messages(stack.enter_context(tree_of(name))) for name in args]
    if len(found) == 1:
        for place, group in itertools.groupby(found[0], key=lambda message: message.place):
            print(f"\n{place}")
            print(textwrap.indent("\n".join(message.shown for message in group), "  "))
        print(f"\n{len(found[0])} messages")
        return 0
    pairs = changes(*found)
    for old, new in pairs:
        print(f"\n{(new or old).place}")  # type: ignore[union-attr]  # one of the two is there
        lines = [each.shown.splitlines() if each is not None else [] for each in (old, new)]
        # Of a long text, such as the examples of a command, the lines that differ.
        print(
            "\n".join(
                f"{line[0]} {line[1:]}" for line in list(difflib.unified_diff(*lines, n=0))[2:] if line[0] in "-+"
            )
        )
    both = sum(old is not None and new is not None for old, new in pairs)
    went, came = (sum(pair[side] is None for pair in pairs) for side in (1, 0))
    print(f"\n{both} reworded, {went} removed, {came} added; {len(found[0])} before, {len(found[1])} now")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
