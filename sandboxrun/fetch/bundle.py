"""The files beside a script by URL: fetched by the digests in its block, and laid out once in a folder that a worker reads.

`trees/HEX` has the script, its files, and the compiled code of those that are Python. It is made under another name and
renamed, so it is whole or not there. Each start verifies every byte of it: sources against the digests in the script, compiled
code against a record that only this user's key can have sealed. No worker is ever given a folder of the cache for writing.
"""

from __future__ import annotations

import _frozen_importlib_external as _external
import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator

from sandboxrun.config.script import BLOCK_FORMAT, FILES_MAX_BYTES, OPENING, Block, plain_block
from sandboxrun.digests import hex_digest
from sandboxrun.errors import FetchError, IntegrityError, ScriptError
from sandboxrun.fetch.cache import Cache, locked
from sandboxrun.fetch.resolve import ImportList, Source
from sandboxrun.records import asdict, record

FILES_SECONDS = 300.0  # for all files of a script together
_RECORD_MAX_BYTES = 1 << 20
_FILE_MAX_BYTES = 33 << 20  # any in a tree: more than all compiled code together


@record
class Bundled:
    """A script by URL and what its block names."""

    source: Source
    name: str  # of the script's file
    script: bytes
    sha256: str
    block: Block

    @property
    def tree(self) -> str:
        """The name of its folder: compiled code is for one interpreter."""
        interpreter = (sys.implementation.cache_tag, _external.MAGIC_NUMBER, sys.flags.optimize)
        return hex_digest(repr((self.sha256, self.source.url, interpreter)).encode())


def block_of(script: bytes, sha256: str, origin: str, cache: Cache) -> Block | None:
    """The block of a script, read once: TOML takes longer than all else of a start that is cached. Raises ScriptError."""
    if OPENING not in script:
        return None
    name = f"{sha256}-{BLOCK_FORMAT}"
    sealed = cache.blocks.get(name, _RECORD_MAX_BYTES)
    if sealed is not None:
        return plain_block(json.loads(sealed))
    from sandboxrun.config.block import read_block

    block = read_block(script, origin)
    cache.blocks.put(name, json.dumps(block and asdict(block)).encode())
    return block


def bundled(source: Source, script: bytes, sha256: str, block: Block) -> Bundled:
    """Raises ScriptError if a file of the block would take the script's own place."""
    name = source.url.partition("?")[0].rpartition("/")[2]
    if not name.isascii() or not name.replace(".", "").replace("-", "").replace("_", "").isalnum() or name[0] == ".":
        name = "worker.py"
    for path, _ in block.files:
        if path.lower() == name.lower() or path.lower().startswith(f"{name.lower()}/"):
            raise ScriptError(
                f"{source.url}:{block.first_line} has the file {path!r}, which is the script itself, or below it"
            )
    return Bundled(source, name, script, sha256, block)


def beside(url: str, path: str) -> str:
    """The URL of a file beside the one at `url`: same host, same ref."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{path}"))


def existing_tree(bundle: Bundled, cache: Cache) -> str | None:
    """The folder of a bundle, verified; None if it is not there, or not as it was made."""
    folder = os.path.join(cache.trees, bundle.tree)
    sealed = cache.tree_records.get(bundle.tree, _RECORD_MAX_BYTES)
    if sealed is None:
        return None
    expected = json.loads(sealed)
    if any(expected.get(path) != digest for path, digest in ((bundle.name, bundle.sha256), *bundle.block.files)):
        return None
    return folder if _is_as_made(folder, expected) else None


def is_intact(name: str, cache: Cache) -> bool:
    """Whether a folder of trees/ is as it was made, whatever script it belongs to."""
    sealed = cache.tree_records.get(name, _RECORD_MAX_BYTES)
    return sealed is not None and _is_as_made(os.path.join(cache.trees, name), json.loads(sealed))


def make_tree(
    bundle: Bundled,
    cache: Cache,
    *,
    allowed: ImportList,
    cached_only: bool,
    progress: Callable[[str], None],
) -> str:
    """The folder of a bundle, of which the missing files are fetched. Raises FetchError or IntegrityError; then nothing changes."""
    contents = _contents(
        bundle, cache, allowed, cached_only, progress
    )  # before the lock: a slow server keeps nobody else
    os.makedirs(cache.trees, mode=0o700, exist_ok=True)
    with locked(os.path.join(cache.trees, f"{bundle.tree}.lock"), f"laying out the files of {bundle.source.url}"):
        return existing_tree(bundle, cache) or _lay_out(bundle, cache, contents)


def file_from_cache_or_origin(
    url: str,
    digest: str,
    cache: Cache,
    *,
    allowed: ImportList,
    cached_only: bool,
    progress: Callable[[str], None],
) -> bytes:
    """The bytes that have this digest, of at most FILE_MAX_BYTES. Raises FetchError or IntegrityError."""
    data = cache.read(digest)
    if data is not None:
        return data
    if cached_only:
        raise FetchError(f"{url} is not in the cache, and --cached-only forbids fetching it", hint="sandboxrun TYPE ID")
    from sandboxrun.fetch.download import download_beside

    data = download_beside(url, allowed=allowed, progress=progress)
    actual = hex_digest(data)
    if actual != digest:
        raise IntegrityError(f"{url} has sha256 {actual}, but the script pins {digest}")
    cache.keep(data, digest)
    return data


def _contents(
    bundle: Bundled, cache: Cache, allowed: ImportList, cached_only: bool, progress: Callable[[str], None]
) -> dict[str, bytes]:
    """All files by path; from the cache, or several at a time from the origin."""
    import time
    from concurrent.futures import ThreadPoolExecutor

    sizes: list[int] = []  # of what has come, in any order; appending is atomic

    def get(path: str, digest: str) -> bytes:
        url = beside(bundle.source.url, path)
        allowed.check(url)
        if sum(sizes) <= FILES_MAX_BYTES:
            data = file_from_cache_or_origin(
                url, digest, cache, allowed=allowed, cached_only=cached_only, progress=progress
            )
            sizes.append(len(data))
        if sum(sizes) > FILES_MAX_BYTES:
            raise ScriptError(f"{bundle.source.url} has files of more than {FILES_MAX_BYTES >> 20} MiB together")
        return data

    deadline = time.monotonic() + FILES_SECONDS
    executor = ThreadPoolExecutor(6, "files")  # no context manager, which would wait for the others after a failure
    try:
        futures = {path: executor.submit(get, path, digest) for path, digest in bundle.block.files}
        contents = {bundle.name: bundle.script}
        for path, future in futures.items():
            contents[path] = future.result(max(0.0, deadline - time.monotonic()))
        return contents
    except TimeoutError as error:
        raise FetchError(f"the files of {bundle.source.url} did not arrive within {FILES_SECONDS:.0f} s") from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _lay_out(bundle: Bundled, cache: Cache, contents: dict[str, bytes]) -> str:
    from sandboxrun.fetch import compile_tree

    folder = os.path.join(cache.trees, bundle.tree)
    staging = os.path.join(cache.trees, f".staging-{bundle.tree}")  # the lock is of this tree
    remove_tree(staging)  # of a process that was killed
    codes = compile_tree.compile_all({path: contents[path] for path in contents if path != bundle.name})
    compiled = {_external.cache_from_source(path): code for path, code in codes.items()}
    try:
        for path, data in (*contents.items(), *compiled.items()):
            _write(os.path.join(staging, path), data)
        for parent, folders, _ in os.walk(staging, topdown=False):
            for name in folders:
                os.chmod(os.path.join(parent, name), 0o500)
        os.chmod(staging, 0o500)
        remove_tree(folder)
        record = {path: hex_digest(data) for path, data in (*contents.items(), *compiled.items())}
        cache.tree_records.put(bundle.tree, json.dumps(record).encode())
        os.rename(staging, folder)
    except OSError as error:
        raise FetchError(
            f"the files of {bundle.source.url} cannot be kept in {cache.trees}: {error.strerror}"
        ) from error
    finally:
        remove_tree(staging)
    if existing_tree(bundle, cache) is None:
        raise FetchError(f"the files of {bundle.source.url} cannot be kept in {cache.trees}")
    return folder


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with open(fd, "wb") as file:
        file.write(data)


def remove_tree(folder: str) -> None:
    """Remove a folder that was made read-only; nothing if it is not there. Symlinks are not followed."""
    import shutil

    if os.path.islink(folder):
        os.unlink(folder)
    if not os.path.lexists(folder):
        return
    with contextlib.suppress(OSError):
        for parent, _, _ in os.walk(folder):
            os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _is_as_made(folder: str, expected: dict[str, str]) -> bool:
    """Whether a folder has exactly these files (path to sha256), and nobody else can write there."""
    try:
        return dict(_digests(folder)) == expected
    except OSError:
        return False


def _digests(folder: str) -> Iterator[tuple[str, str]]:
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        status = os.lstat(os.path.join(folder, prefix))
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise NotADirectoryError(prefix)
        with os.scandir(os.path.join(folder, prefix)) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path + "/")
                    continue
                fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                with open(fd, "rb", buffering=0) as file:
                    yield path, hex_digest(file.read(_FILE_MAX_BYTES + 1) or b"")
