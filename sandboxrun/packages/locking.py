"""A local script and the lock beside it, which `sandboxrun lock` writes and `--check` compares."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat

from sandboxrun.config.block import ignored_line, read_block
from sandboxrun.config.contents import canonical
from sandboxrun.config.script import Block, lock_names
from sandboxrun.digests import hex_digest
from sandboxrun.errors import FetchError, ScriptError
from sandboxrun.files import write_whole
from sandboxrun.log import escape
from sandboxrun.packages import edit, listing, resolve
from sandboxrun.packages.lock import read_lock
from sandboxrun.packages.resolve import Pin
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MADE_BY = "# Made by: sandboxrun lock "
_FOR = b"# For: "


@record
class Script:
    """A script on disk. `block` is an empty one if it has none."""

    folder: str  # absolute, without symbolic links
    name: str
    source: bytes
    block: Block

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name)


@record
class LockFile:
    """The lock beside a script: its file's name and its text; None if there is none, or none is needed."""

    name: str
    text: bytes | None


def open_script(path: str) -> Script:
    """Raises ScriptError."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    name = os.path.basename(path)
    source = listing.read_beside(folder, name)
    if source is None:
        raise ScriptError(f"{escape(path)[:200]} is no file")
    return script_of(folder, name, source)


def script_of(folder: str, name: str, source: bytes) -> Script:
    """Raises ScriptError."""
    try:
        block = read_block(source, name)
    except UnicodeDecodeError:
        raise ScriptError(f"{escape(name)[:200]} is not UTF-8") from None
    ignored = ignored_line(source) if block is None else None
    if ignored is not None:
        raise ScriptError(f"{escape(name)[:200]}:{ignored[0]} {ignored[1]}")
    return Script(folder, name, source, block or Block(0, 0))


def lock_beside(script: Script) -> LockFile:
    """The lock with the digest in the block, else the first lock in the folder. Raises ScriptError."""
    names = lock_names(script.name)
    texts = {name: text for name in names if (text := listing.read_beside(script.folder, name)) is not None}
    for name, text in texts.items():
        if hex_digest(text) == script.block.lock:
            return LockFile(name, text)
    return LockFile(*next(iter(texts.items()), (names[0], None)))


def made_for(block: Block) -> bytes:
    """The line of a lock that says what it was resolved for."""
    parts = [", ".join(block.dependencies)]
    parts += [f"requires-python {block.requires_python}"] if block.requires_python else []
    parts += [f"exclude-newer {block.exclude_newer}"] if block.exclude_newer else []
    return _FOR + "; ".join(parts).encode()


def is_current(script: Script, lock: LockFile) -> bool:
    """Whether the lock has the digest in the block and was made for its dependencies, so nothing has to be resolved."""
    if not script.block.dependencies:
        return script.block.lock is None
    if lock.text is None or hex_digest(lock.text) != script.block.lock:
        return False
    return is_for(script.block, lock.text) is True


def is_for(block: Block, text: bytes) -> bool | None:
    """Whether a lock was made for the dependencies of a block; None if it does not say so."""
    head = text.split(b"\n", 3)[:3]
    return made_for(block) in head if any(line.startswith(_FOR) for line in head) else None


def serves(block: Block, lock: LockFile) -> bool:
    """Whether a lock has what a block depends on, whatever digest the block has."""
    if lock.text is None:
        return False
    said = is_for(block, lock.text)
    return said if said is not None else not any(_unsatisfied(block, lock))


def new_lock(
    script: Script, old: LockFile, environ: Mapping[str, str], *, pylock: bool, upgrade: bool, index: str | None = None
) -> LockFile:
    """Resolve the dependencies of a script. Raises ScriptError, FetchError, ConfigError."""
    block = script.block
    hashed, urls, _ = lock_names(script.name)
    name = urls if pylock else hashed
    if not block.dependencies:
        return LockFile(name, None)
    _check_own(script, name)
    kept = () if upgrade or old.text is None else resolve.pins(old.text, old.name)
    wanted = resolve.Wanted(script.name, block.dependencies, block.requires_python, block.exclude_newer, kept)
    first, _, rest = resolve.resolve(wanted, environ, pylock=pylock, index=index).partition(b"\n")
    made = LockFile(name, first + b"\n" + made_for(block) + b"\n" + rest)
    read_lock(made.text or b"", name)  # an index of folders or without https cannot be named in the second form
    return made


def _check_own(script: Script, name: str) -> None:
    """Raise ScriptError if a lock of this name is that of another script, which pins it."""
    first = (listing.read_beside(script.folder, name) or b"").partition(b"\n")[0].decode("utf-8", "replace")
    other = first.removeprefix(_MADE_BY).removesuffix(" --pylock")
    if first.startswith(_MADE_BY) and other != script.name and os.path.isfile(os.path.join(script.folder, other)):
        raise ScriptError(
            f"{name} is the lock of {escape(other)[:80]}, and {script.name} lies in the same folder",
            hint=f"sandboxrun lock {shlex.quote(script.path)} --pylock",
        )


def write_lock(script: Script, lock: LockFile) -> None:
    """Write the lock if it is another one. Raises ScriptError, OSError."""
    if lock.text is not None and listing.read_beside(script.folder, lock.name) != lock.text:
        write_whole(os.path.join(script.folder, lock.name), lock.text, mode=0o644)


def write(script: Script, lock: LockFile, files: Mapping[str, str]) -> bool:
    """Write the lock, and its digest and the files' into the script; whether the script changed. Raises ScriptError."""
    made = edit.with_digests(
        script.source,
        files=files,
        lock=None if lock.text is None else hex_digest(lock.text),
        origin=script.name,
        exclude_newer=script.block.exclude_newer,
    )
    if listing.read_beside(script.folder, script.name) != script.source:
        raise ScriptError(f"{script.name} was changed meanwhile, so nothing is written")
    try:
        write_lock(script, lock)
        if made != script.source:
            write_whole(script.path, made, mode=stat.S_IMODE(os.stat(script.path).st_mode))
    except OSError as error:
        raise FetchError(f"nothing can be written in {escape(script.folder)[:200]}: {error.strerror}") from error
    return made != script.source


def stale_files(listed: Mapping[str, str], present: Mapping[str, str]) -> Iterator[str]:
    """A line for each difference. `present`: the digests of the files that there are to list."""
    for path in sorted({*listed, *present}):
        if path not in present:
            yield f"{path}: is listed, but there is no such file to list"
        elif path not in listed:
            yield f"{path}: is not listed"
        elif listed[path] != present[path]:
            yield f"{path}: has sha256 {present[path]}, but {listed[path]} is listed"


def stale_lock(script: Script, lock: LockFile) -> Iterator[str]:
    """A line for each reason why the lock is not that of the block. Needs no network."""
    block = script.block
    if not block.dependencies:
        if block.lock is not None:
            yield f"{script.name}: has a lock, but no dependencies"
        return
    if block.lock is None:
        yield f"{script.name}: has dependencies, but no lock"
    elif lock.text is None:
        yield f"{lock.name}: is missing"
    elif hex_digest(lock.text) != block.lock:
        yield f"{lock.name}: has sha256 {hex_digest(lock.text)}, but {script.name} has {block.lock}"
    if lock.text is not None and block.lock is not None:
        unsatisfied = list(_unsatisfied(block, lock))
        yield from unsatisfied
        if not unsatisfied and is_for(block, lock.text) is False:
            yield f"{lock.name}: was made for other dependencies"


def _unsatisfied(block: Block, lock: LockFile) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for pin in pins(lock):
        found.setdefault(pin.name, []).append(pin.version)
    for text in block.dependencies:
        wanted = resolve.requirement(text)
        versions = found.get(canonical(wanted.name), [])
        if not versions and (wanted.marker is None or wanted.marker.evaluate()):
            yield f"{lock.name}: does not have {wanted.name}"
        elif versions and not any(wanted.specifier.contains(version, prereleases=True) for version in versions):
            yield f"{lock.name}: has {wanted.name} {', '.join(versions)}, which is not {text}"


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """`+ new.py`, `~ other.py`, `- gone.py`."""
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            yield f"{'+' if path not in before else '-' if path not in after else '~'} {path}"


def changed_packages(before: LockFile, after: LockFile) -> Iterator[str]:
    """`+ requests 2.32.3`, `~ six 1.16 -> 1.17`, `- idna 3.10`, `~ rich 14.0 (other wheels)`."""

    def versions(lock: LockFile) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for pin in pins(lock):
            found.setdefault(pin.name, []).append(pin.version)
        return found

    old, new = versions(before), versions(after)
    old_digests, new_digests = _digests(before), _digests(after)
    for name in sorted({*old, *new}):
        if name not in old:
            yield f"+ {name} {', '.join(new[name])}"
        elif name not in new:
            yield f"- {name} {', '.join(old[name])}"
        elif old[name] != new[name]:
            yield f"~ {name} {', '.join(old[name])} -> {', '.join(new[name])}"
        elif old_digests and new_digests and old_digests.get(name) != new_digests.get(name):
            yield f"~ {name} {', '.join(new[name])} (other wheels)"


def _digests(lock: LockFile) -> dict[str, set[str]]:
    """Those of each package; empty for the form that has others, and if the lock cannot be read."""
    found: dict[str, set[str]] = {}
    if lock.text is not None and not lock.name.endswith(".toml"):
        with contextlib.suppress(ScriptError):
            for package in read_lock(lock.text, lock.name).packages:
                found.setdefault(package.name, set()).update(package.digests)
    return found


def pins(lock: LockFile) -> tuple[Pin, ...]:
    """The packages of a lock; none if there is no lock."""
    return () if lock.text is None else resolve.pins(lock.text, lock.name)
