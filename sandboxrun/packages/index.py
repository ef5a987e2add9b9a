"""Wheels from the operator's own index, downloaded by pip: it knows the operator's indexes, mirrors, certificates and logins.

pip is told to take nothing but wheels with these digests, and no dependencies, so it builds and runs nothing. It reads a file that
is written here, never the lock, and opens a wheel only for its metadata, once the digest is right. What it has downloaded is
verified again by whoever takes it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from sandboxrun.errors import FetchError, IntegrityError, SandboxrunError, UsageError
from sandboxrun.installation import install_hint
from sandboxrun.log import escape
from sandboxrun.packages.lock import Lock, Locked
from sandboxrun.packages.options import RAISED_BY, Options
from sandboxrun.sandbox.supervisor.scratch import folder_size

SECONDS = 600  # for all wheels of a lock
_MEMORY_BYTES = 2 << 30
_LOOK_SECONDS = 0.05
_SPEAK_SECONDS = 5.0
_STDERR_MAX_BYTES = 64 << 10
# What pip needs to reach the operator's index. Nothing else, because a worker's secrets may be in the environment.
_PASSED = re.compile(
    r"HOME|PATH|LANG|USER|LOGNAME|NETRC|XDG_\w+|PIP_\w+|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|(http|https|all|no)_proxy",
    re.ASCII | re.IGNORECASE,
)
# A space is a list without entries for pip, and wins over its configuration files, where the operator's certificates may be.
_NO_OTHER_INDEX = {"PIP_EXTRA_INDEX_URL": " ", "PIP_FIND_LINKS": " ", "PIP_NO_INDEX": "0"}


def fetch_wheels(
    lock: Lock, packages: Sequence[Locked], *, folder: str, options: Options, say: Callable[[str], None]
) -> list[str]:
    """Paths of files in `folder`. Raises FetchError, IntegrityError, UsageError, OSError."""
    if not _has_pip():
        raise UsageError("pip downloads the packages, and this Python has no pip", hint=install_hint(["pip"]))
    downloads, temporary, errors = (os.path.join(folder, name) for name in ("downloads", "temporary", "errors"))
    os.mkdir(downloads)
    os.mkdir(temporary)
    requirements = os.path.join(folder, "requirements.txt")
    with open(requirements, "x", encoding="utf-8") as file:
        file.writelines(map(_requirement, packages))
    # -P: the current folder is not on Python's path.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--only-binary", ":all:", "--require-hashes", "--no-deps", "--dest", downloads, "-r", requirements]
    env = {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)}
    env |= {"TMPDIR": temporary, "PIP_REQUIRE_VIRTUALENV": "0"}  # nothing is installed, so it need be in none
    if options.index is not None:
        env |= {**_NO_OTHER_INDEX, "PIP_INDEX_URL": options.index}  # no argument: others could see a password in it
    with open(errors, "xb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=temporary,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        _watch(process, (downloads, temporary), lock, options, say)
    finally:
        if process.poll() is None:  # until it is reaped, its number is no other group's
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        with open(errors, "rb") as file:
            raise _error(file.read(_STDERR_MAX_BYTES).decode(errors="replace"), lock, options)
    return [os.path.join(downloads, name) for name in sorted(os.listdir(downloads))]


def _requirement(package: Locked) -> str:
    """The marker is left out: it holds."""
    hashes = "".join(f" --hash=sha256:{digest}" for digest in package.digests)
    return f"{package.name}=={package.version}{hashes}\n"


def _has_pip() -> bool:
    try:
        return importlib.util.find_spec("pip") is not None
    except (ImportError, ValueError):
        return False


def _watch(
    process: subprocess.Popen[bytes],
    folders: Sequence[str],
    lock: Lock,
    options: Options,
    say: Callable[[str], None],
) -> None:
    """Wait for pip, which is not trusted to end, nor an index to say how long a file is. Raises FetchError."""
    # Twice: pip copies each file from one folder to the other.
    for limit, value in ((resource.RLIMIT_FSIZE, options.packed_max), (resource.RLIMIT_AS, _MEMORY_BYTES)):
        with contextlib.suppress(ProcessLookupError, ValueError, PermissionError):  # it has ended; a lower limit holds
            resource.prlimit(process.pid, limit, (value, value))
    start = spoken = time.monotonic()
    slack = 1 << 20  # metadata, and pip's own files
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_SECONDS)
            return
        sizes = [folder_size(folder, options.packed_max + slack) for folder in folders]
        if max(sizes) > options.packed_max + slack:
            raise _too_large(lock, options)
        now = time.monotonic()
        if now - start > SECONDS:
            raise FetchError(f"the wheels of {lock.name} did not arrive within {SECONDS} s")
        if now - spoken > _SPEAK_SECONDS:
            say(f"fetching the wheels of {lock.name} … {max(sizes) >> 20} MiB")
            spoken = now


def _error(stderr: str, lock: Lock, options: Options) -> SandboxrunError:
    """What pip has said, in one line with the package and the cause."""
    lines = stderr.splitlines()
    mismatch = _mismatch(lines)
    if mismatch is not None:
        package, version, got = mismatch
        return IntegrityError(f"the index has {package} {version} with sha256 {got}, which {lock.name} does not pin")
    if f"[Errno {errno.EFBIG}]" in stderr:
        return _too_large(lock, options)
    absent = re.search(r"No matching distribution found for (\S{1,100})==(\S{1,100})", stderr)
    if absent is not None and "connection broken" not in stderr:
        here = f"Python {sys.version_info.major}.{sys.version_info.minor} on {os.uname().machine}"
        return FetchError(
            f"{lock.name}: the index has no wheel of {absent[1]} {absent[2]} for {here}, and nothing is built"
        )
    if absent is not None:
        index = f"the index {escape(options.index)[:200]}" if options.index else "the index of pip's configuration"
        return FetchError(f"{lock.name}: {absent[1]} {absent[2]} cannot be fetched: {index} cannot be reached")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    cause = (errors or [line for line in lines if line.strip()] or ["it has not said why"])[-1]
    return FetchError(f"{lock.name}: pip cannot download the wheels: {escape(cause)[:300]}")


def _mismatch(lines: Sequence[str]) -> tuple[str, str, str] | None:
    """Package, version and digest of the first file that has another digest than the requirements."""
    package = None
    for line in lines:
        package = re.match(r" {4}(\S{1,100})==(\S{1,100}) from ", line) or package
        got = re.fullmatch(r" +Got {1,20}([0-9a-f]{64})", line)
        if package is not None and got is not None:
            return package[1], package[2], got[1]
    return None


def _too_large(lock: Lock, options: Options) -> FetchError:
    return FetchError(
        f"the wheels of {lock.name} have more than {options.packed_max} bytes, which is the limit{RAISED_BY}"
    )
