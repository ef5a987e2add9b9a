"""Runs in the worker's process: which call an error came from.

An error of the operating system has at most a file's name, and does not say what was to be done with it. So the call is
read afterwards from its source, and its arguments from the variables of its frame. An audit hook would know both exactly,
and would make every open(2) of every worker two fifths slower, whether or not it is ever refused.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

UNKNOWN: Any = object()


class FailedCall:
    """The innermost call of a traceback: `name` is empty, and arguments are UNKNOWN, if its source is not at hand."""

    def __init__(self, error: BaseException) -> None:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        self.frame = traceback.tb_frame if traceback is not None else None
        self.module = str(self.frame.f_globals.get("__name__", "")) if self.frame is not None else ""
        self.caller = self.frame.f_code.co_name if self.frame is not None else ""
        self._node: ast.Call | None = None
        self.name = ""
        if traceback is not None and self.frame is not None:
            self._node = _call(self.frame.f_code, traceback.tb_lasti, self.frame.f_globals)
            if self._node is not None:
                self.name = _name(self._node.func, self.frame)

    @property
    def variables(self) -> Mapping[str, Any]:
        """The local variables of the caller."""
        return self.frame.f_locals if self.frame is not None else {}

    def argument(self, position: int, *keywords: str, default: object = None) -> Any:
        """The value of an argument, `default` if it was not given, or UNKNOWN."""
        if self._node is None or self.frame is None:
            return UNKNOWN
        values, are_all = _positional(self._node.args, self.frame)
        if position < len(values):
            return values[position]
        if not are_all:
            return UNKNOWN
        for keyword in self._node.keywords:
            value = _value(keyword.value, self.frame)
            if keyword.arg in keywords:
                return value
            if keyword.arg is None:  # **options
                if type(value) is not dict:
                    return UNKNOWN
                for name in keywords:
                    if name in value:
                        return value[name]
        return default


def _positional(nodes: Sequence[ast.expr], frame: types.FrameType) -> tuple[list[Any], bool]:
    """The values of positional arguments, and whether they are all: of *arguments, the values may be unknown."""
    values: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            several = _value(node.value, frame)
            if type(several) not in (tuple, list):
                return values, False
            values += several
        else:
            values.append(_value(node, frame))
    return values, True


def _call(code: types.CodeType, instruction: int, variables: dict[str, object]) -> ast.Call | None:
    """The call that the instruction is part of (PEP 657)."""
    positions: Sequence[tuple[int | None, ...]] = list(code.co_positions())
    line, last, start, end = positions[instruction // 2]
    if line is None or last is None or start is None or end is None:
        return None
    lines = [text.encode() for text in linecache.getlines(code.co_filename, variables)[line - 1 : last]]
    if not lines:
        return None
    lines[-1] = lines[-1][:end]  # before the first: both may be the same line
    lines[0] = lines[0][start:]
    try:
        expression = ast.parse(b"".join(lines).decode(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    return expression if isinstance(expression, ast.Call) else None


def _name(function: ast.expr, frame: types.FrameType) -> str:
    """The name under which the function was defined, which `import … as` does not change."""
    written = function.attr if isinstance(function, ast.Attribute) else ""
    called = _value(function, frame)
    name = getattr(called, "__name__", written) if called is not UNKNOWN else written
    return name if isinstance(name, str) else written


def _value(node: ast.AST, frame: types.FrameType) -> Any:
    """The value of an expression in this frame, if it can be told without running anything."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        for variables in (frame.f_locals, frame.f_globals, vars(builtins)):
            if node.id in variables:
                return variables[node.id]
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, frame)
        if isinstance(owner, types.ModuleType):
            return vars(owner).get(node.attr, UNKNOWN)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _value(node.left, frame), _value(node.right, frame)
        if isinstance(left, int) and isinstance(right, int):
            return left | right
    return UNKNOWN
