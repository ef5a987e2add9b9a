"""Files that change below a folder, soon after they did. The only importer of watchfiles."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

from sandboxrun.dev.target import Target
from sandboxrun.errors import UsageError

STEP_MILLIS = 10  # saved in several steps, as editors do, is saved once
GROUP_MILLIS = 60  # and so long at most
LOOK_MILLIS = 100  # how soon the end is noticed
IGNORED = (".vscode", ".ruff_cache", ".cache")  # with those that watchfiles ignores: .git, .venv, __pycache__, …


def changes(target: Target, *, stop: threading.Event, armed: Callable[[], None]) -> Iterator[set[str]]:
    """Paths that were changed, made or removed, until `stop`; `armed` is called once nothing is missed any more.

    Raises UsageError where watchfiles is not installed.
    """
    try:
        import watchfiles
    except ImportError:
        raise UsageError(
            "watchfiles is not installed, which tells when a file is saved: pip install 'sandboxrun[dev]'"
        ) from None

    default = watchfiles.DefaultFilter(ignore_dirs=(*watchfiles.DefaultFilter.ignore_dirs, *IGNORED))

    def wanted(change: watchfiles.Change, path: str) -> bool:
        if target.script is not None:
            return path == target.script
        # The default filter looks at all parts of a path, also at those above the folder.
        return default(change, os.path.join("/", os.path.relpath(path, target.folder)))

    for found in watchfiles.watch(
        target.folder,
        watch_filter=wanted,
        recursive=target.script is None,
        step=STEP_MILLIS,
        debounce=GROUP_MILLIS,
        rust_timeout=LOOK_MILLIS,
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=False,
        ignore_permission_denied=True,
    ):
        armed()
        if found:
            yield {path for _, path in found}
