"""This host: kernel, folders, policy files, versions."""

from __future__ import annotations

import os
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
_PACKAGES = ("redis", "hiredis", "httpx", "cryptography", "pyseccomp")


def kernel() -> Iterator[Finding]:
    """`sandboxrun check`, in a line. Call before other threads are started: it forks."""
    from sandboxrun.sandbox.compile.features import Feature
    from sandboxrun.sandbox.selftest.check import Status, check

    report = check()
    system = f"Linux {os.uname().release} on {os.uname().machine}"
    held = sum(row.status == Status.HOLDS for row in report.rows)
    if report.error is not None:
        yield fails("kernel", f"{system}: the sandbox cannot be made: {report.error}", "sandboxrun check")
    elif not report.holds:
        yield fails("kernel", f"{system}: {held} of {len(report.rows)} protections hold", "sandboxrun check")
    else:
        yield ok("kernel", f"{system}: the sandbox holds, {held} of {len(report.rows)}")
    missing = [f"{feature.label} (Linux {feature.kernel})" for feature in Feature if feature not in report.kernel]
    if report.error is None and missing:
        yield note(
            "kernel", f"without the second wall of {', '.join(missing)}", "a newer Linux, as sandboxrun check says"
        )


def folders() -> Iterator[Finding]:
    """The cache and the state folder: there, ours alone, how large."""
    try:
        found = Folders.of_user()
    except ConfigError as error:
        yield fails("folders", str(error), "export HOME")
        return
    for what, path in (("cache", found.cache), ("state", found.state)):
        try:
            about = os.stat(path)
        except FileNotFoundError:
            yield ok("folders", f"{what} {path} is made by the first start")
            continue
        except OSError as error:
            yield fails(
                "folders",
                f"{what} {path} cannot be looked at: {error.strerror}",
                "mend it, or set XDG_CACHE_HOME and XDG_STATE_HOME",
            )
            continue
        mode = stat.S_IMODE(about.st_mode)
        if about.st_uid != os.geteuid() or mode & 0o022 or not stat.S_ISDIR(about.st_mode):
            yield fails(
                "folders",
                f"{what} {path} can be written by others (owner {about.st_uid}, mode {mode:o})",
                f"chown {os.geteuid()} {path} and chmod 700 {path}",
            )
        elif not os.access(path, os.W_OK):
            yield fails(
                "folders",
                f"{what} {path} cannot be written",
                f"chmod u+w {path}, or a file system that is not read-only",
            )
        else:
            count, size = _size(path)
            room = os.statvfs(path)
            free = room.f_bavail * room.f_frsize
            yield ok("folders", f"{what} {path}: mode {mode:o}, {count} files, {size >> 10} KiB")
            if free < 64 << 20:
                yield note(
                    "folders",
                    f"{free >> 20} MiB are free where {path} is",
                    "make room; sandboxrun cache --clean removes scripts",
                )


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
    """The operator's files: which there are, and whether they can be read."""
    try:
        paths = Folders.of_user().policies
    except ConfigError:
        return  # said of the folders
    there = 0
    for path in paths:
        try:
            sections = sections_of(path)
        except ConfigError as error:
            there += 1
            yield fails("policy", str(error), f"mend {path}: nothing runs until then")
            continue
        if sections is not None:
            there += 1
            names = ", ".join(repr(section.pattern) for section in sections[:8])
            yield ok("policy", f"{path} applies, with {len(sections)} sections" + (f": {names}" if names else ""))
    if not there:
        yield ok("policy", f"there is none, so the default one applies ({paths[-1]} would be yours)")


def versions() -> Iterator[Finding]:
    """Of what takes part."""
    from importlib import metadata

    found = [f"sandboxrun {__version__}", f"Python {sys.version.split()[0]}"]
    missing = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    library = _libseccomp()
    if library is None:
        yield fails("versions", "libseccomp cannot be loaded", "apt-get install libseccomp2")
    else:
        found.append(f"libseccomp {library}")
    yield ok("versions", ", ".join(found))
    if missing:
        yield fails("versions", f"{', '.join(missing)} not installed", f"pip install {' '.join(missing)}")


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
