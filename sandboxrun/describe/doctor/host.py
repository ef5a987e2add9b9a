"""This host: kernel, folders, policy files, versions."""

from __future__ import annotations

import os
import shlex
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
        yield fails("folders", str(error), hint=error.hint or _home_hint())
        return
    for name, path in (("cache", found.cache), ("state", found.state)):
        yield from _folder(f"{name} {path}", path)


def _folder(name: str, path: str) -> Iterator[Finding]:
    try:
        about = os.stat(path)
    except FileNotFoundError:
        yield ok("folders", f"{name} does not exist yet: the first start makes it")
        return
    except OSError as error:
        yield fails("folders", f"{name} cannot be examined: {error.strerror}", hint=f"namei -l {shlex.quote(path)}")
        return
    mode = stat.S_IMODE(about.st_mode)
    if not stat.S_ISDIR(about.st_mode):
        yield fails(
            "folders", f"{name} is not a folder", hint=f"mv -n {shlex.quote(path)} {shlex.quote(path + '.old')}"
        )
    elif about.st_uid != os.geteuid():
        yield fails(
            "folders",
            f"{name} belongs to another user (owner {about.st_uid})",
            hint=f"sudo chown -R {os.geteuid()} {shlex.quote(path)}",
        )
    elif mode & 0o022:
        yield fails("folders", f"{name} is writable for others (mode {mode:o})", hint=f"chmod 700 {shlex.quote(path)}")
    elif not os.access(path, os.W_OK):
        yield fails("folders", f"{name} is not writable", hint=f"chmod u+w {shlex.quote(path)}")
    else:
        count, size = _size(path)
        room = os.statvfs(path)
        free = room.f_bavail * room.f_frsize
        yield ok("folders", f"{name}: mode {mode:o}, {count} files, {size >> 10} KiB")
        if free < FREE_BYTES:
            yield note(
                "folders", f"the file system of {path} has only {free >> 20} MiB left", hint="sandboxrun cache --clean"
            )


def _home_hint() -> str:
    return 'export HOME="$(getent passwd "$(id -u)" | cut -d: -f6)"'


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
    return f'"${{EDITOR:-vi}}" {shlex.quote(path)}'


def versions() -> Iterator[Finding]:
    """Of sandboxrun, Python, libraries."""
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
        yield fails("versions", "libseccomp cannot be loaded", hint="sudo apt-get install -y libseccomp2")
    else:
        found.append(f"libseccomp {library}")
    yield ok("versions", ", ".join(found))
    if missing:
        yield fails(
            "versions",
            f"{', '.join(missing)} not installed",
            hint=f"{shlex.quote(sys.executable)} -m pip install {' '.join(missing)}",
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
