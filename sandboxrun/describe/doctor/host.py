"""This host: kernel, folders, policy files, versions."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from typing import Any

from sandboxrun import __version__
from sandboxrun.describe.doctor.finding import Finding, fails, note, ok
from sandboxrun.errors import ConfigError
from sandboxrun.host.folders import Folders
from sandboxrun.policy.file import sections_of

ENTRIES_MAX = 100_000  # of a folder whose size is counted
FREE_BYTES = 64 << 20
_PACKAGES = ("redis", "hiredis", "httpx", "cryptography", "pyseccomp")


def kernel() -> Iterator[Finding]:
    """`sandboxrun check`, in a line. Call before other threads are started: it forks."""
    from sandboxrun.sandbox.compile.features import Feature
    from sandboxrun.sandbox.selftest.check import Status, check

    report = check()
    system = f"Linux {os.uname().release} on {os.uname().machine}"
    held = sum(row.status == Status.HOLDS for row in report.rows)
    if report.error is not None:
        yield fails("kernel", f"{system}: the sandbox cannot be set up: {report.error}", hint="sandboxrun check")
    elif not report.holds:
        yield fails("kernel", f"{system}: {held} of {len(report.rows)} protections hold", hint="sandboxrun check")
    else:
        yield ok("kernel", f"{system}: the sandbox holds, {held} of {len(report.rows)}")
    missing = [f"{feature.label} (Linux {feature.kernel})" for feature in Feature if feature not in report.kernel]
    if report.error is None and missing:
        yield note(
            "kernel",
            f"this kernel lacks {', '.join(missing)}, so one mechanism alone enforces what two could",
            hint="sandboxrun check",
        )


def folders() -> Iterator[Finding]:
    """The cache and the state folder: whether they exist, who may write them, how large they are."""
    try:
        found = Folders.of_user()
    except ConfigError as error:
        yield fails("folders", str(error), hint=error.hint)
        return
    for name, path in (("cache", found.cache), ("state", found.state)):
        yield from _folder(name, path)
    for path in (found.cache, found.state):
        yield from _room(path, found.cache)


def _folder(which: str, path: str) -> Iterator[Finding]:
    name, quoted = f"{which} {path}", shlex.quote(path)
    obstacle = _obstacle(path)
    if obstacle:
        yield fails("folders", f"{name}: {obstacle} is not a folder", hint=_aside_hint(obstacle))
        return
    try:
        about = os.stat(path)
    except FileNotFoundError:
        yield ok("folders", f"{name} does not exist yet: the first start makes it")
        return
    except OSError as error:
        yield fails("folders", f"{name} cannot be examined: {error.strerror}", hint=_closed_hint(path))
        return
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid != os.geteuid():
        yield fails(
            "folders",
            f"{name} belongs to another user (owner {about.st_uid})",
            hint=_home_hint() or f"sudo chown -R {os.geteuid()} {quoted}",
        )
    elif mode & 0o022:
        yield fails("folders", f"{name} is writable for others (mode {mode:o})", hint=f"chmod 700 {quoted}")
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        yield fails(
            "folders", f"{name} is in a file system that is read-only", hint=f"export XDG_{which.upper()}_HOME=/FOLDER"
        )
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield fails("folders", f"{name} is closed to its owner (mode {mode:o})", hint=f"chmod u+rwx {quoted}")
    else:
        count, size = _size(path)
        yield ok("folders", f"{name}: mode {mode:o}, {count} files, {size >> 10} KiB")


def _room(path: str, cache: str) -> Iterator[Finding]:
    try:
        room, in_cache = os.statvfs(path), os.stat(path).st_dev == os.stat(cache).st_dev
    except OSError:
        return  # a finding of _folder(), or not made yet
    free = room.f_bavail * room.f_frsize
    if free < FREE_BYTES:
        yield note(
            "folders",
            f"the file system of {path} has only {free >> 20} MiB left",
            hint="sandboxrun cache --clean" if in_cache else "",
        )


def _parts(path: str) -> Iterator[str]:
    """The path and the folders above it, the highest first."""
    names = path.split("/")
    return ("/".join(names[:end]) for end in range(2, len(names) + 1))


def _obstacle(path: str) -> str:
    """What stands where a folder is expected: a file, or a symlink that leads to none. Empty if nothing does."""
    return next((part for part in _parts(path) if os.path.lexists(part) and not os.path.isdir(part)), "")


def _aside_hint(path: str) -> str:
    """Rename it to a name that is free: `mv -n` does nothing if the name is taken."""
    other, number = f"{path}.old", 1
    while os.path.lexists(other):
        number += 1
        other = f"{path}.old{number}"
    return f"mv -n {shlex.quote(path)} {shlex.quote(other)}"


def _closed_hint(path: str) -> str:
    """Open the folder above `path` that cannot be entered, if it is the user's own."""
    closed = next((part for part in _parts(path) if not os.access(part, os.X_OK)), path)
    try:
        owner = os.stat(closed).st_uid
    except OSError:
        owner = -1
    if owner == os.geteuid():
        return f"chmod u+rwx {shlex.quote(closed)}"
    return _home_hint() or f"namei -l {shlex.quote(path)}"


def _home_hint() -> str:
    """Name the user's own home folder if HOME is that of another, as after `sudo -E`; empty if it is not."""
    home = os.environ.get("HOME", "")
    try:
        if os.stat(home).st_uid == os.geteuid():
            return ""
    except PermissionError:
        pass
    except OSError:
        return ""
    try:
        own = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        own = "/FOLDER"
    return "" if own == home else f"export HOME={shlex.quote(own)}"


def _size(path: str) -> tuple[int, int]:
    count = size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            count += 1
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
        if count > ENTRIES_MAX:
            break
    return count, size


def policies() -> Iterator[Finding]:
    """The operator's policy files: which exist, and whether they can be read."""
    try:
        paths = Folders.of_user().policies
    except ConfigError:
        return  # a finding of folders()
    there = 0
    for path in paths:
        try:
            sections = sections_of(path)
        except ConfigError as error:
            there += 1
            yield fails("policy", f"{error}: nothing runs until this is corrected", hint=error.hint or _edit_hint(path))
            continue
        if sections is not None:
            there += 1
            names = ", ".join(repr(section.pattern) for section in sections[:8])
            yield ok("policy", f"{path} applies, with {len(sections)} sections" + (f": {names}" if names else ""))
    if not there:
        yield ok("policy", f"there is no policy file, so the default policy applies ({paths[-1]} would be yours)")


def _edit_hint(path: str) -> str:
    """Unquoted, because EDITOR may have options: code --wait."""
    quoted = shlex.quote(path)
    try:
        own = os.stat(path).st_uid == os.geteuid()
    except OSError:
        own = True
    return f"${{EDITOR:-vi}} {quoted}" if own else f"sudoedit {quoted}"


def versions() -> Iterator[Finding]:
    """Of sandboxrun, Python, libraries."""
    from importlib import metadata

    from sandboxrun.installation import install_hint
    from sandboxrun.sandbox.compile.seccomp import library_hint

    found = [f"sandboxrun {__version__}", f"Python {sys.version.split()[0]}"]
    missing = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    library = _libseccomp()
    if library is None:
        yield fails("versions", "libseccomp cannot be loaded", hint=library_hint())
    else:
        found.append(f"libseccomp {library}")
    yield ok("versions", ", ".join(found))
    if missing:
        yield fails(
            "versions",
            f"{', '.join(missing)} not installed",
            hint=install_hint(missing),
        )


def tools() -> Iterator[Finding]:
    """The programs that only workers with packages need, and those who lock them."""
    from importlib import metadata, util

    from sandboxrun.installation import install_hint

    if util.find_spec("pip") is not None:
        yield ok("packages", f"pip {metadata.version('pip')} downloads the packages of workers")
    else:
        yield note("packages", "no worker can have packages, because there is no pip", hint=install_hint(["pip"]))
    uv = "uv" if util.find_spec("uv") is not None else shutil.which("uv")
    if uv is not None:
        yield ok("packages", f"{uv} resolves the packages of sandboxrun lock")
    else:
        yield note(
            "packages", "sandboxrun lock cannot resolve packages, because there is no uv", hint=install_hint(["uv"])
        )


def _libseccomp() -> str | None:
    import ctypes

    class Version(ctypes.Structure):  # struct scmp_version, seccomp_version(3)
        _fields_ = tuple((name, ctypes.c_uint) for name in ("major", "minor", "micro"))

    try:
        ask: Any = ctypes.CDLL("libseccomp.so.2").seccomp_version
    except (OSError, AttributeError):
        return None
    ask.restype = ctypes.POINTER(Version)
    version = ask().contents
    return f"{version.major}.{version.minor}.{version.micro}"
