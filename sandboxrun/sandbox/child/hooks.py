"""Runs in the worker's process: an uncaught error ends with lines that name the missing grants, or the limit.

The traceback begins in the script and shows its source (tracebacks.py). What explains an error is imported when the first
one is shown.
"""

from __future__ import annotations

import _thread
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Iterator, Mapping
    from typing import Any

    from sandboxrun.sandbox.child.denials import Grants

_ENOMEM, _EMFILE, _EFBIG = 12, 24, 27
_REFUSALS = frozenset((1, 13))  # EPERM, EACCES
_SHOWN_MAX = 100  # lines about commands of os.system()
_NO_TERMINAL = "out of pty devices"  # of Python's pty, after it was refused all of them
_STATUSES = frozenset((-1, 126 << 8, 127 << 8))  # of os.system(): no shell, or a shell that could not run a program


def install(plan: Mapping[str, Any]) -> None:
    """Replace the hooks of `sys` and, before it is imported, of `threading`. `plan`: the child's."""

    def show(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        try:
            from sandboxrun.sandbox.child import tracebacks

            shown = tracebacks.shown(error, traceback, plan["name"])
        except Exception:  # no descriptor or memory is left to import with
            sys.__excepthook__(kind, error, traceback)
        else:
            print(shown, end="", file=sys.stderr, flush=True)
        for line in _first_explanation(error, plan):
            print(line, file=sys.stderr, flush=True)

    def show_thread(args: Any) -> None:
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread is not None else _thread.get_ident()
            print(f"Exception in thread {name}:", file=sys.stderr, flush=True)
            show(args.exc_type, args.exc_value, args.exc_traceback)

    show_thread.__module__ = "_thread"
    sys.excepthook = show
    module: Any = _thread
    module._excepthook = show_thread  # which the threading module takes for its own when it is imported


def explain_command(plan: Mapping[str, Any], shown: set[str], command: Any, status: int) -> None:
    """Say, once, which grants a command of os.system() was missing: it raises nothing."""
    if status not in _STATUSES:
        return
    try:
        import os

        from sandboxrun.sandbox.child import programs

        for line in programs.of_status(os.fsdecode(command), status, _grants(plan)):
            if line not in shown and len(shown) < _SHOWN_MAX:
                shown.add(line)
                print(line, file=sys.stderr, flush=True)
    except Exception:  # noqa: S110  # the script gets the status, as without this
        pass


def _first_explanation(error: BaseException, plan: Mapping[str, Any]) -> list[str]:
    """Of the error, of what caused it, or of what it groups."""
    for each in _linked(error):
        try:
            lines = _explanation(each, plan)
        except Exception:  # the script may have put anything in the place of a module; the traceback is shown already
            lines = []
        if lines:
            return lines
    return []


def _linked(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions
        waiting.append(current.__cause__ or current.__context__)


def _explanation(error: BaseException, plan: Mapping[str, Any]) -> list[str]:
    """Other errors take a few comparisons only, because a handler may raise one at each request."""
    hints = plan["hints"]
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == _ENOMEM):
        return [hints["memory"]]
    if isinstance(error, OSError):
        if error.errno in (_EMFILE, _EFBIG):
            return [hints["files" if error.errno == _EMFILE else "scratch"]]
        if error.errno not in _REFUSALS and str(error) != _NO_TERMINAL:
            return []
        from sandboxrun.sandbox.child import refusals

        return refusals.lines(error, _grants(plan))
    if isinstance(error, ImportError):
        from sandboxrun.sandbox.child import modules

        return modules.lines(error, plan)
    if hasattr(error, "sqlite_errorcode"):
        from sandboxrun.sandbox.child import databases

        return databases.lines(error, _grants(plan))
    if type(error).__name__ == "CalledProcessError":
        from sandboxrun.sandbox.child import programs

        return programs.lines(programs.of_command(error), _grants(plan))
    callee = getattr(error, "callee", None)
    if type(error).__name__ == "CallDenied" and isinstance(callee, str):
        return [_grants(plan).denial("call", callee, callee)]
    if type(error).__module__.partition(".")[0] in ("redis", "valkey"):
        from sandboxrun.sandbox.child import redis_refusals

        return redis_refusals.lines(error, _grants(plan)) if redis_refusals.is_refusal(error) else []
    return []


def _grants(plan: Mapping[str, Any]) -> Grants:
    from sandboxrun.sandbox.child import denials

    return denials.Grants(plan["key"], plan["rules"])
