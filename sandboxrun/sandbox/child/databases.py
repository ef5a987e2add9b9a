"""Runs in the worker's process: which grant an SQLite database was missing.

sqlite3.OperationalError has neither a path nor an errno, so `sqlite3.connect` remembers its paths. The audit event of that
name would have them too, but an audit hook makes every audited call of Python slower (docs/decisions/0023).
"""

from __future__ import annotations

import os

from sandboxrun.sandbox.child.denials import Grants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_REMEMBERED_MAX = 64
# Primary result codes (sqlite.org/rescode.html): READONLY, IOERR, CANTOPEN.
_REFUSED = frozenset((8, 10, 14))

_opened: dict[str, None] = {}  # paths, the latest last


class _Connect:
    """`sqlite3.connect`. No function, because as an attribute of a class that would take the instance for the path."""

    def __init__(self, connect: Callable[..., Any]) -> None:
        self.__wrapped__ = connect
        self.__name__ = self.__qualname__ = connect.__name__
        self.__doc__ = connect.__doc__

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        _remember(arguments[0] if arguments else options.get("database"))
        return self.__wrapped__(*arguments, **options)


def watch(module: Any) -> None:
    """Remember the path of each database that is opened from now on. `module`: sqlite3."""
    module.connect = module.dbapi2.connect = _Connect(module.connect)


def _remember(name: Any) -> None:
    try:
        path = _path(name)
        if path:
            _opened.pop(path, None)
            _opened[path] = None
            if len(_opened) > _REMEMBERED_MAX:
                del _opened[next(iter(_opened))]
    except Exception:  # whatever the script gave to connect(), it gets the error of sqlite3
        return


def _path(name: Any) -> str:
    """The absolute path of a database, empty if it is in memory or temporary."""
    text = os.fsdecode(name)
    if text.startswith("file:"):
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(text)
        if "mode=memory" in parts.query:
            return ""
        text = unquote(parts.path)
    return os.path.abspath(text) if text and text != ":memory:" else ""


def lines(error: BaseException, grants: Grants) -> list[str]:
    """For the latest database that is not granted.

    Its folder has to be granted, because SQLite makes the journal beside the file.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _REFUSED:
        return []
    for path in reversed(_opened):
        folder = os.path.dirname(path)
        missing = [kind for kind in ("read", "write") if not grants.allows(kind, folder)]
        if missing and os.path.isdir(folder):
            return [grants.file(kind, path, in_folder=True) for kind in missing]
    return []
