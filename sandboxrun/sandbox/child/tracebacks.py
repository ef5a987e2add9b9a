"""Runs in the worker's process: how an uncaught error is shown, and which grant a PermissionError was missing.

Such an error has the file's name, but not what was to be done with it. That is read, afterwards, from the call that failed: from
its source, and the variables of its frame. An audit hook would know it exactly, and would cost every open(2) of every
worker two fifths more, whether or not it is ever refused. Nothing here decides anything: the kernel has.
"""

from __future__ import annotations

import builtins
import linecache
import os
import traceback as printer
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Sequence

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = frozenset(
    "chmod chown fchmod fchown lchown link mkdir mkfifo mknod remove removexattr rename replace rmdir setxattr symlink "
    "truncate unlink".split()
)
_PROGRAMS = frozenset("execv execve fork_exec posix_spawn posix_spawnp".split())
_OPENS = frozenset({"open", "FileIO"})
_UNKNOWN = object()
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + "/"


def shown(error: BaseException, traceback: types.TracebackType | None, script: str) -> str:
    """The traceback without our own frames, also in what caused it; where there are no others it is a defect of ours, and
    all of it is of interest."""
    report = printer.TracebackException(type(error), error, traceback)
    reports = [report]
    while reports:
        one = reports.pop()
        frames = list(one.stack)
        first = next((n for n, frame in enumerate(frames) if frame.filename == script), 0)
        if any(frame.filename.startswith(_OURS) for frame in frames[:first]):
            frames = frames[first:]  # with what of Python's is between us and a handler, as a thread's first lines
        theirs = [frame for frame in frames if not frame.filename.startswith(_OURS)]
        if theirs:
            one.stack = printer.StackSummary.from_list(theirs)
        linked = (one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ()))
        reports += [other for other in linked if other is not None]
    return "".join(report.format())


def missing_grant(error: PermissionError, key: str) -> str | None:
    """A line that names the grant, for the hash `key`; None where the error is not of a file."""
    if not isinstance(error.filename, str):
        return None
    kind = _wanted(error)
    path = error.filename if kind == "run" and "/" not in error.filename else os.path.abspath(error.filename)
    path = path if path.isprintable() else ascii(path)[1:-1]
    # What is not there yet cannot be granted: its folder can.
    grant = os.path.dirname(path) if kind == "write" and not os.path.lexists(error.filename) else path
    return f'Requires {kind} access to "{path}"; grant it with: --allow-{kind}={grant} (field allow{kind.title()} of {key})'


def _wanted(error: PermissionError) -> str:
    if error.filename2:  # of rename, link and symlink
        return "write"
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == "subprocess":  # it raises in the name of a child
            return "run"
        call = _call(frame.f_code, traceback.tb_lasti, frame.f_globals)
        found = _use(call, frame) if call is not None else None
        if found is not None:
            return found
    return _probed(error.filename)


def _probed(path: str | bytes) -> str:
    """Of an unknown call: one for reading would not be refused what is not there, nor what can be read now."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except PermissionError:
        return "read" if os.path.lexists(path) else "write"
    except OSError:
        pass
    return "write"


def _call(code: types.CodeType, instruction: int, variables: dict[str, object]) -> ast.Call | None:
    """The call that the instruction is part of (PEP 657); None where its source is not at hand."""
    import ast  # only where a file was refused

    positions: Sequence[tuple[int | None, ...]] = list(code.co_positions())
    line, last, start, end = positions[instruction // 2]
    if line is None or last is None or start is None or end is None:
        return None
    lines = [text.encode() for text in linecache.getlines(code.co_filename, variables)[line - 1 : last]]
    if not lines:
        return None
    lines[-1] = lines[-1][:end]  # first, for it may be the only one
    lines[0] = lines[0][start:]
    try:
        found = ast.parse(b"".join(lines).decode(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    return found if isinstance(found, ast.Call) else None


def _use(call: ast.Call, frame: types.FrameType) -> str | None:
    import ast

    function = _value(call.func, frame)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    name = getattr(function, "__name__", name) if function is not _UNKNOWN else name
    if name in _PROGRAMS:
        return "run"
    if name in _CHANGES:
        return "write"
    if name not in _OPENS or any(isinstance(argument, ast.Starred) for argument in call.args[:2]):
        return None
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    node = call.args[1] if len(call.args) > 1 else named.get("mode", named.get("flags"))
    if node is None:
        return None if None in named else "read"  # **options may have it
    how = _value(node, frame)
    if isinstance(how, str):
        return "write" if set(how) & set("wax+") else "read"
    if isinstance(how, int):
        return "write" if how & _WRITES else "read"
    return None


def _value(node: ast.AST, frame: types.FrameType) -> object:
    """What an expression is worth in this frame, where that can be told without running anything."""
    import ast

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        for variables in (frame.f_locals, frame.f_globals, vars(builtins)):
            if node.id in variables:
                return variables[node.id]
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, frame)
        if isinstance(owner, types.ModuleType):
            return vars(owner).get(node.attr, _UNKNOWN)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _value(node.left, frame), _value(node.right, frame)
        if isinstance(left, int) and isinstance(right, int):
            return left | right
    return _UNKNOWN
