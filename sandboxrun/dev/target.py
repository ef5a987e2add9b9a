"""What `sandboxrun dev` develops: a folder, a file, or a hash that is there already."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sandboxrun.config import keys
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError, StoreError, UsageError
from sandboxrun.fetch.resolve import LocalSource, resolve
from sandboxrun.redis import hashes
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError, refused
from sandboxrun.redis.transaction import optimistic

if TYPE_CHECKING:
    from sandboxrun.host.plan import Preparation

ID = "dev"  # of a worker whose hash we make


@dataclass(frozen=True, slots=True)
class Target:
    """A worker and its source. `folder` is what is watched; with `script`, only that file of it. Both are absolute."""

    type: str
    id: str
    folder: str
    script: str | None
    made: bool  # the hash is ours to make and to remove

    @property
    def key(self) -> str:
        return keys.worker_key(self.type, self.id)

    @property
    def url(self) -> str:
        return self.script or self.folder

    @property
    def main(self) -> str:
        """The script itself."""
        return self.script or os.path.join(self.folder, "worker.py")

    @classmethod
    def of_path(cls, path: str) -> Target:
        """A folder with worker.py, or a script. Raises UsageError."""
        real = os.path.abspath(path)
        for text in (real, os.path.realpath(path)):
            check_text(text)
        if os.path.isdir(real):
            if not os.path.isfile(os.path.join(real, "worker.py")):
                raise UsageError(f"{path[:200]} has no worker.py", hint=_script_hint(path))
            return cls(type_from(os.path.basename(real)), ID, real, None, made=True)
        if not os.path.isfile(real):
            raise UsageError(f"{path[:200]} is neither a folder nor a file", hint=_folder_hint(path))
        name = os.path.basename(real).removesuffix(".py")
        if name == "worker":
            name = os.path.basename(os.path.dirname(real))
        real = os.path.realpath(real)  # a hash that names a symlink is refused if a worker could have made it
        return cls(type_from(name), ID, os.path.dirname(real), real, made=True)

    @classmethod
    def of_hash(cls, connection: Connection, type_: str, id_: str) -> Target:
        """A hash whose version is local. Raises ConfigError."""
        config = read(connection, type_, id_)
        if config.version != "local":
            raise ConfigError(
                f"{config.key} runs version {config.version!r}, which does not change on save",
                hint=f"sandboxrun set {type_} {id_} url=FOLDER version=local",
            )
        source = resolve(config.url, "local", key=config.key)
        assert isinstance(source, LocalSource)
        if source.folder is not None:
            return cls(type_, id_, source.folder, None, made=False)
        return cls(type_, id_, os.path.dirname(source.script), source.script, made=False)


def read(connection: Connection, type_: str, id_: str) -> WorkerConfig:
    """The hash as it is now. Raises ConfigError, StoreError."""
    found = preparation(connection, type_, id_)
    assert found.config is not None
    return found.config


def preparation(connection: Connection, type_: str, id_: str, *, policy: str | None = None) -> Preparation:
    """The first step of a run, of the hash as it is now. Raises ConfigError, StoreError."""
    from sandboxrun.host.folders import Folders
    from sandboxrun.host.plan import Preparation
    from sandboxrun.host.runplan import RunOptions

    options = RunOptions(keys.check_type(type_), keys.check_id(id_), "", policy=policy)
    found = Preparation(options, Folders.of_user())
    found.parse_stored(hashes.read(connection, type_, id_))
    return found


def _script_hint(folder: str) -> str:
    """For a folder without worker.py: develop another script in it, or make a worker."""
    import shlex

    names = sorted(os.listdir(folder))
    scripts = [name for name in names if name.endswith(".py") and _is_text(name)]
    if scripts:
        return f"sandboxrun dev {shlex.quote(os.path.join(folder, scripts[0]))}"
    if not names:
        return f"sandboxrun init {shlex.quote(folder)}"
    return "sandboxrun init NAME && sandboxrun dev NAME"


def _folder_hint(path: str) -> str:
    """For a path at which nothing is: the one that was probably meant, or make a worker there."""
    import difflib
    import shlex

    parent, name = os.path.split(path.rstrip("/"))
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(name, filter(_is_text, os.listdir(parent or ".")), 1)
        if near:
            return f"sandboxrun dev {shlex.quote(os.path.join(parent, near[0]))}"
    return f"sandboxrun init {shlex.quote(path)}"


def check_text(path: str) -> None:
    """Raise UsageError for a path that a hash cannot have."""
    if not _is_text(path):
        raise UsageError(f"{os.fsencode(path)!r} is not UTF-8: a hash cannot name it")


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 has surrogates, PEP 383
        return False
    return True


def type_from(name: str) -> str:
    """A valid worker type from a folder's name: `My Café!` to `my-cafe`, `worker` if no letter from a to z is in it."""
    import unicodedata

    plain = "".join(char for char in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(char))
    type_ = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")
    type_ = re.sub(r"^[^a-z]+", "", type_)[: keys.TYPE_MAX_CHARS] or "worker"
    try:
        return keys.check_type(type_)
    except ConfigError:
        return f"{type_}-worker"


class OwnKeys:
    """The hash that we make for a folder, and the streams that come with it: removed at the end, if they are ours."""

    def __init__(self, connection: Connection, target: Target) -> None:
        self._connection, self._target = connection, target
        streams = (keys.request_stream, keys.response_stream, keys.dead_stream)
        self._streams = [stream(target.type) for stream in streams]

    def __enter__(self) -> OwnKeys:
        """Raises ConfigError where the hash is somebody's."""
        target = self._target
        if not target.made:
            self._ours: list[str] = []
            return self
        fields = {"type": target.type, "url": target.url, "version": "local"}
        if not self._make(fields):
            raise ConfigError(
                f"{target.key} is there already, and is not the one of {target.url}",
                hint=f"sandboxrun dev {target.type} {target.id}",
            )
        self._ours = [target.key, *(name for name in self._streams if not self._connection.call("EXISTS", name))]
        return self

    def _make(self, fields: dict[str, str]) -> bool:
        """Whether the hash is ours now. One that is just like it, and that nobody runs, a killed session has left."""
        connection, key = self._connection, self._target.key
        ours = False

        def decide(_: list[Any]) -> list[tuple[str, ...]]:
            nonlocal ours
            stored = hashes.read(connection, self._target.type, self._target.id).own
            wanted = {name.encode(): value.encode() for name, value in fields.items()}
            ours = stored.kind == "none" or (not stored.long and stored.fields == wanted)
            return [("HSET", key, *(word for pair in fields.items() for word in pair))] if ours else []

        try:
            return optimistic(connection, [key], decide, tries=1) and ours
        except ReplyError as error:
            raise refused(error, connection.address.shown) from error

    def __exit__(self, *_: object) -> None:
        if self._ours:
            with contextlib.suppress(StoreError):  # it is away, and the session's end says so
                self._connection.call("DEL", *self._ours)
