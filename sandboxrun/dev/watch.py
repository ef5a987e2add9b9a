"""Files that change below a folder, soon after they did. The only importer of watchfiles."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator

from sandboxrun.dev.target import Target
from sandboxrun.errors import UsageError
from sandboxrun.log import escape

STEP_MILLIS = 10  # saved in several steps, as editors do, is saved once
GROUP_MILLIS = 60  # and so long at most
LOOK_MILLIS = 100  # how soon the end is noticed, and an edit behind a symlink
FILES_MAX = 5000  # that are compared by their times
IGNORED = (".vscode", ".ruff_cache", ".cache")  # with those that watchfiles ignores: .git, .venv, __pycache__, …

State = tuple[int, int, int] | None  # time, size and inode; None if there is no such file


def changes(
    target: Target, *, stop: threading.Event, armed: Callable[[], None], warn: Callable[[str], None]
) -> Iterator[set[str]]:
    """Paths that were changed, made or removed, until `stop`; `armed` is called once nothing is missed any more.

    Raises UsageError where watchfiles is not installed.
    """
    try:
        import watchfiles
    except ImportError:
        raise UsageError(
            "watchfiles is not installed, which tells when a file is saved", hint="pip install 'sandboxrun[dev]'"
        ) from None

    ignored = (*watchfiles.DefaultFilter.ignore_dirs, *IGNORED)
    default = watchfiles.DefaultFilter(ignore_dirs=ignored)

    def wanted(change: watchfiles.Change, path: str) -> bool:
        if target.script is not None:
            return path == target.script
        if os.path.basename(path).startswith(".tmp-"):  # of files.write_whole, as for a lock
            return False
        # The default filter looks at all parts of a path, also at those above the folder.
        return default(change, os.path.join("/", os.path.relpath(path, target.folder)))

    files, warned = _Files(target, ignored), False
    while not stop.is_set():
        is_new = True  # what changed before the kernel watched has no event
        try:
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
                paths = files.changed({path for _, path in found}) | (files.missed() if is_new else set())
                is_new = False
                if paths:
                    yield paths
        except RuntimeError as error:  # watchfiles gives each path as text, and ends at a path that is not UTF-8
            match = re.search(r'decode path "?(.*?)"? to string', str(error))
            if match is None:
                raise
            if not warned:
                warn(f"{escape(match[1])[:200]} is not UTF-8; files with such names are not watched")
            warned = True


class _Files:
    """The states of a target's files, for edits without an event of the kernel: behind a symlink, or while watchfiles was
    started again."""

    def __init__(self, target: Target, ignored: tuple[str, ...]) -> None:
        self._target, self._ignored = target, frozenset(ignored)
        self._states = self._look()
        self._links = self._outside()

    def changed(self, paths: set[str]) -> set[str]:
        """Of `paths`, which had events, those that changed; and the symlinks to other folders whose files changed."""
        reported = {path for path in paths if path not in self._links or self._states.get(path) != _state(path)}
        behind = {path for path in self._links if self._states.get(path) != _state(path)}
        paths = reported | behind
        if paths:
            self._states = self._look()
            self._links = self._outside()
        return paths

    def missed(self) -> set[str]:
        """The paths that changed since the last call of a method."""
        before, self._states = self._states, self._look()
        self._links = self._outside()
        return {path for path in before.keys() | self._states.keys() if before.get(path) != self._states.get(path)}

    def _look(self) -> dict[str, State]:
        if self._target.script is not None:
            return {self._target.script: _state(self._target.script)}
        states: dict[str, State] = {}
        for folder, folders, names in os.walk(self._target.folder):
            folders[:] = [name for name in folders if name not in self._ignored]
            for name in names:
                path = os.path.join(folder, name)
                if path.endswith(".py") or os.path.islink(path):
                    states[path] = _state(path)
            if len(states) > FILES_MAX:
                break
        return states

    def _outside(self) -> list[str]:
        """The symlinks that lead out of the watched folder."""
        home = os.path.join(os.path.realpath(self._target.folder), "")
        return [path for path in self._states if os.path.islink(path) and not os.path.realpath(path).startswith(home)]


def _state(path: str) -> State:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
