"""Runs in the worker's process: an uncaught error ends with a line that names the missing grant or the limit.

The traceback begins in the script and shows its source (tracebacks.py, imported when the first error is shown).
"""

from __future__ import annotations

import _thread
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import Mapping
    from typing import Any

_ENOMEM, _EMFILE, _EFBIG = 12, 24, 27


def install(script: str, key: str, hints: Mapping[str, str]) -> None:
    """Replace the hooks of `sys` and, before it is imported, of `threading`.

    `script`: its name in tracebacks. `key`: the worker's hash. `hints`: the line for each limit that an error can reach.
    """

    def show(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        try:
            from sandboxrun.sandbox.child import tracebacks

            shown = tracebacks.shown(error, traceback, script)
        except Exception:  # no descriptor or memory is left to import with
            sys.__excepthook__(kind, error, traceback)
        else:
            print(shown, end="", file=sys.stderr, flush=True)
        line = _first_explanation(error, key, hints)
        if line is not None:
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


def _first_explanation(error: BaseException | None, key: str, hints: Mapping[str, str]) -> str | None:
    """Of the error or of what caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        line = _explanation(error, key, hints)
        if line is not None:
            return line
        error = error.__cause__ or error.__context__
    return None


def _explanation(error: BaseException, key: str, hints: Mapping[str, str]) -> str | None:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == _ENOMEM):
        return hints["memory"]
    if isinstance(error, OSError) and error.errno in (_EMFILE, _EFBIG):
        return hints["files" if error.errno == _EMFILE else "scratch"]
    if not isinstance(error, PermissionError):
        return None
    try:
        from sandboxrun.sandbox.child import tracebacks

        return tracebacks.missing_grant(error, key)
    except Exception:
        return None  # the script may have put anything in the place of a module; the traceback is shown already
