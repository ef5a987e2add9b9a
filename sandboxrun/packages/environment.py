"""The environment of a lock: a verified, read-only folder with its packages, made once for each lock, Python and platform.

`installed` is for every start. It compares owner, mode and times of the folders with the sealed record, so it detects an entry
that was added, removed or renamed, and a record that was sealed with another key. It does not detect a write into an existing
file, which requires a change of its mode first, by this user or root. The first start of a boot and `sandboxrun cache --verify`
read all files.
"""

from __future__ import annotations

import os

from sandboxrun.errors import FetchError, ScriptError
from sandboxrun.packages import seal
from sandboxrun.packages.options import RAISED_BY, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandboxrun.packages.lock import Lock
    from sandboxrun.packages.seal import Seal

__all__ = ["Options", "check_sizes", "environment", "installed", "sealed"]

LOCK_SECONDS = 1500  # longer than a download and an installation


def installed(lock: Lock, *, cache: str, key: str) -> str | None:
    """The path of the environment, if it exists and was verified in this boot. Opens no connection.

    `cache`, `key`: as in Folders. Of the lock only its digest is used.
    """
    found = sealed(lock, cache=cache, key=key)
    return None if found is None else found[0]


def sealed(lock: Lock, *, cache: str, key: str) -> tuple[str, Seal] | None:
    """As `installed`, with its record."""
    name = seal.name_of(lock)
    record = seal.read(cache, key, name)
    path = os.path.join(seal.folder_of(cache), name)
    if record is None or record.lock_sha256 != lock.sha256 or record.boot != seal.boot_id():
        return None
    return (path, record) if record.stamp and record.stamp == seal.stamp_of(path, record.folders) else None


def environment(lock: Lock, *, cache: str, key: str, options: Options, say: Callable[[str], None]) -> str:
    """The path of the environment, which is installed if it is missing or damaged. `say` is told what takes time.

    Raises ScriptError, IntegrityError, FetchError, UsageError, SandboxError, ConfigError; then nothing is installed.
    """
    path = _allowed(lock, cache, key, options)
    if path is not None:
        return path
    from sandboxrun.fetch.cache import locked, make_private
    from sandboxrun.packages import verify

    name, folder = seal.name_of(lock), seal.folder_of(cache)
    make_private(cache)
    make_private(folder)
    with locked(
        os.path.join(folder, f"{name}.lock"),
        f"installing the packages of {lock.name}",
        seconds=LOCK_SECONDS,
        on_wait=lambda: say(f"waiting for another start, which installs the packages of {lock.name}"),
    ):
        path = installed(lock, cache=cache, key=key)  # another start has installed it meanwhile
        if path is None:
            found = verify.find(cache, key, name)
            fault = verify.fault(found)
            if not fault:
                verify.seal_again(cache, key, found)
            else:
                if found.seal is not None:
                    say(f"{found.path} {fault}; it is installed again")
                _install(lock, cache, key, name, options, say)
    path = _allowed(lock, cache, key, options)
    if path is None:
        raise FetchError(f"the packages of {lock.name} cannot be kept in {folder}: is the disk full?")
    return path


def check_sizes(record: Seal, name: str, *, packed_max: int, unpacked_max: int, files_max: int) -> None:
    """Raise what an installation would raise, if an environment has more than these limits. `name`: of its lock."""
    if record.packed_bytes > packed_max:
        raise FetchError(f"the wheels of {name} have {record.packed_bytes} bytes: the limit is {packed_max}{RAISED_BY}")
    if record.source_bytes > unpacked_max or record.source_files > files_max:
        raise ScriptError(
            f"the wheels of {name} are not installed: unpacked they have more than "
            f"{unpacked_max} bytes or {files_max} files, which is the limit{RAISED_BY}"
        )


def _allowed(lock: Lock, cache: str, key: str, options: Options) -> str | None:
    """As `installed`. Raises if it has more than the limits."""
    found = sealed(lock, cache=cache, key=key)
    if found is None:
        return None
    path, record = found
    check_sizes(
        record,
        lock.name,
        packed_max=options.packed_max,
        unpacked_max=options.unpacked_max,
        files_max=options.files_max,
    )
    return path


def _install(lock: Lock, cache: str, key: str, name: str, options: Options, say: Callable[[str], None]) -> None:
    from sandboxrun.packages import install, wheels
    from sandboxrun.sandbox.supervisor.scratch import scratch_folder

    try:
        # This removes the staging folders of killed installations first.
        with scratch_folder(os.path.join(seal.folder_of(cache), "staging")) as staging:
            downloads = os.path.join(staging, "wheels")
            os.mkdir(downloads, 0o700)
            found = wheels.obtain(lock, cache=cache, key=key, folder=downloads, options=options, say=say)
            say(f"installing {len(found)} package{'' if len(found) == 1 else 's'} of {lock.name}")
            install.install(lock, found, install.Destination(cache, key, name, staging), options)
    except OSError as error:
        raise FetchError(f"the packages of {lock.name} cannot be installed: {error.strerror}") from error
