"""A user's folders, with and without installed packages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from index import Index
from wheels import Wheel, lock_text

from sandboxrun.errors import SandboxrunError
from sandboxrun.packages.environment import Options, environment, installed
from sandboxrun.packages.lock import Lock, read_lock
from sandboxrun.packages.wheels import Store


@dataclass
class Machine:
    """The folders of a user, and what was said to him."""

    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def key(self) -> str:
        return str(self.folder / "state/key")

    def install(self, lock: Lock | bytes, **options: object) -> Path:
        found = environment(
            lock_of(lock),
            cache=str(self.cache),
            key=self.key,
            options=Options(**options),  # type: ignore[arg-type]
            say=self.said.append,
        )
        return Path(found)

    def cached(self, *wheels: Wheel) -> bytes:
        """The lock of wheels that were downloaded already. pip itself looks into a wheel, and refuses some."""
        lock = lock_text(*wheels)
        store = Store(str(self.cache), self.key)
        for wheel, package in zip(wheels, lock_of(lock).packages, strict=True):
            store.put(str(wheel.write(self.folder)), wheel.filename, package)
        return lock

    def refused(self, lock: Lock | bytes, kind: type[SandboxrunError], **options: object) -> str:
        """The line of the error. Nothing is installed, and nothing is left behind."""
        with pytest.raises(kind) as error:
            self.install(lock, **options)
        assert type(error.value) is kind
        assert self.installed(lock) is None
        assert self.environments() == []
        assert self.staging() == []
        text = str(error.value)
        assert text.isprintable()
        return text

    def installed(self, lock: Lock | bytes) -> str | None:
        return installed(lock_of(lock), cache=str(self.cache), key=self.key)

    def environments(self) -> list[Path]:
        return sorted(path for path in (self.cache / "env").glob("?" * 64))

    def staging(self) -> list[Path]:
        return sorted((self.cache / "env/staging").glob("*"))

    def content(self, path: Path) -> dict[str, bytes]:
        """All files but compiled modules."""
        return {
            str(file.relative_to(path)): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and file.suffix != ".pyc"
        }


def lock_of(lock: Lock | bytes) -> Lock:
    return lock if isinstance(lock, Lock) else read_lock(lock, "requirements.lock")


def published(index: Index, *wheels: Wheel) -> bytes:
    """The lock of wheels that the index has from now on."""
    index.publish(*wheels)
    return lock_text(*wheels)
