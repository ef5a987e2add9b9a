"""Locks the packages of the developed script when its dependencies change, and installs them before it starts: if that fails,
the running worker is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandboxrun.config.script import OPENING
from sandboxrun.dev.target import Target, preparation
from sandboxrun.errors import SandboxrunError
from sandboxrun.log import escape

if TYPE_CHECKING:
    from sandboxrun.config.contents import Package
    from sandboxrun.host.plan import Preparation
    from sandboxrun.packages.locking import LockFile, Script
    from sandboxrun.redis.connection import Connection


class PackageUpdater:
    """Locks and installs the packages of one target. `say` is given (kind, text), as of a Setting."""

    def __init__(self, target: Target, options: Sequence[str], say: Callable[[str, str], None]) -> None:
        given = {word.partition("=")[0]: word.partition("=")[2] for word in options}
        self._target, self._policy, self._say = target, given.get("--policy"), say
        self._written: tuple[str, bytes] | None = None  # path and text of a lock that was written here

    def is_own(self, path: str) -> bool:
        """Whether a file that was saved is the lock as it was written here."""
        if self._written is None or path != self._written[0]:
            return False
        try:
            with open(path, "rb") as file:
                return file.read(len(self._written[1]) + 1) == self._written[1]
        except OSError:
            return False

    def update(self, connection: Connection) -> None:
        """Lock and install what the script depends on now. Raises SandboxrunError."""
        try:
            with open(self._target.main, "rb") as file:
                source = file.read()
        except OSError:
            return  # the start says so
        if OPENING not in source:  # most scripts, which must not wait for an import
            return
        from sandboxrun.packages import locking

        folder, name = os.path.split(self._target.main)
        script = locking.script_of(folder, name, source)
        if not script.block.dependencies:
            return
        prepared = preparation(connection, self._target.type, self._target.id, policy=self._policy)
        prepared.bound()
        old = locking.lock_beside(script)
        resolved = None if locking.serves(script.block, old) else self._resolve(script, old, prepared)
        before = {(pin.name, pin.version) for pin in locking.pins(old)}
        self._install(prepared, None if resolved is None else before)

    def _resolve(self, script: Script, old: LockFile, prepared: Preparation) -> LockFile:
        from sandboxrun.packages import locking

        assert prepared.ceiling is not None
        pylock = old.text is not None and old.name.endswith(".toml")
        self._say("dev", escape(f"resolving {', '.join(script.block.dependencies)}"))
        new = locking.new_lock(script, old, os.environ, pylock=pylock, upgrade=False, index=prepared.ceiling.index)
        assert new.text is not None
        self._written = (os.path.join(script.folder, new.name), new.text)
        try:
            locking.write_lock(script, new)
        except OSError as error:
            raise SandboxrunError(f"{escape(script.folder)} cannot be written: {error.strerror}") from error
        return new

    def _install(self, prepared: Preparation, before: set[tuple[str, str]] | None) -> None:
        """`before`: what the lock had before it was resolved again; None if it was not."""
        from sandboxrun.fetch import obtain
        from sandboxrun.fetch.cache import Cache

        folders = prepared.folders
        cache = Cache(folders.cache, folders.state)
        prepared.resolve()
        prepared.fetch(
            lambda _, source, allowed: obtain(
                source, cache=cache, allowed=allowed, expected_sha256=None, reload=False, cached_only=False,
                warn=_nothing, progress=_nothing,
            )
        )  # fmt: skip
        prepared.gather(cache, fetch=True)
        if prepared.gathered is None:
            return
        is_new = prepared.gathered.environment is None
        packages = prepared.gathered.contents.packages
        prepared.install()
        if before is not None or self._target.made:  # who edits the dependencies here is who would be asked
            _accept(prepared)
        fresh = [package for package in packages if (package.name, package.version) not in (before or ())]
        gone = sorted({name for name, _ in before or ()} - {package.name for package in packages})
        if is_new or before is not None:
            self._tell("installed", fresh)
            if gone:
                self._say("good", escape(f"removed {', '.join(gone)}"))

    def _tell(self, what: str, packages: Sequence[Package]) -> None:
        if packages:
            self._say("good", escape(f"{what} {', '.join(f'{each.name} {each.version}' for each in packages)}"))


def _nothing(_: str) -> None:
    pass


def _accept(prepared: Preparation) -> None:
    """Record that the packages are approved, if nothing else has grown since the last approval."""
    from sandboxrun.policy import approval
    from sandboxrun.records import replace

    prepared.approve(ask=False)
    assert prepared.agreement is not None and prepared.config is not None
    before, now = prepared.agreement.before, prepared.config.asked
    if (
        prepared.agreement.grown
        and before is not None
        and not approval.growth(replace(before, contents=now.contents), now)
    ):
        approval.save(prepared.approved, now)
