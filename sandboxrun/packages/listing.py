"""The files that belong to a script, by git or by name, and their digests.

The folder may be a stranger's. git is asked for names alone, in a way that starts no program and no connection, whatever the
configuration of that repository says; symbolic links are not followed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess

from sandboxrun.config.block import path_fault
from sandboxrun.config.script import FILE_MAX_BYTES, FILES_MAX, FILES_MAX_BYTES
from sandboxrun.digests import hex_digest
from sandboxrun.errors import ScriptError
from sandboxrun.log import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GIT_SECONDS = 30.0
WALKED_MAX = 10_000  # entries of a named folder
READS_MAX = 3  # of a file that changes meanwhile
# A repository's own configuration can name programs: for a look at the work tree, for hooks, and to fetch missing objects.
_GIT = (
    *("-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", "-c", "core.untrackedCache=false"),
    *("-c", "safe.bareRepository=explicit", "--no-pager", "--literal-pathspecs"),
)
_GIT_ENV = {
    "LC_ALL": "C",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",  # outweighs protocol.*.allow
}
# A worker reads none of these, and each edit of one would change the worker's digest.
_NO_PART = re.compile(
    r"(?:.*/)?(?:tests?|__pycache__)/.*|(?:.*/)?(?:test_[^/]*|[^/]*_test|conftest)\.py"
    r"|(?:README|LICEN[CS]E|CHANGELOG|CONTRIBUTING|SECURITY)[^/]*"
    r"|pyproject\.toml|setup\.(?:py|cfg)|requirements[^/]*\.(?:txt|in)|uv\.lock|Makefile|Dockerfile"
)
LOCKS = re.compile(r"requirements\.lock|pylock(?:\.[^./]+)?\.toml")


def tracked(folder: str, environ: Mapping[str, str]) -> list[str] | None:
    """The regular files that git tracks below a folder, relative to it; None if it is in no work tree, or there is no git.

    Raises ScriptError if git refuses.
    """
    git = shutil.which("git", path=environ.get("PATH"))
    if git is None or not os.path.isabs(git):
        return None
    env = {name: value for name, value in environ.items() if name in ("PATH", "HOME", "XDG_CONFIG_HOME")}
    command = [git, *_GIT, "ls-files", "--stage", "-z"]
    try:
        done = subprocess.run(
            command, cwd=folder, env=env | _GIT_ENV, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScriptError(f"git does not list the files of {escape(folder)}: {escape(str(error))[:200]}") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace")
        if "not a git repository" in said or "must be run in a work tree" in said:
            return None
        raise ScriptError(
            f"git does not list the files of {escape(folder)}: {escape(said.partition(chr(10))[0])[:200]}"
        )
    entries = (entry.partition(b"\t") for entry in done.stdout.split(b"\0"))
    # Not symbolic links, and not other repositories.
    return sorted({os.fsdecode(path) for head, _, path in entries if head.startswith((b"100644 ", b"100755 "))})


def worth_listing(paths: Iterable[str], script: str) -> list[str]:
    """The paths without the script itself, tests, locks, names that begin with a dot, and what is about the project alone."""
    return [
        path
        for path in paths
        if path != script
        and not any(part.startswith(".") for part in path.split("/"))
        and not _NO_PART.fullmatch(path)
        and not LOCKS.fullmatch(path)
    ]


def left_out(folder: str, known: set[str]) -> list[str]:
    """The Python files beside the script that are not among those `known`."""
    names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".py") and entry.is_file()]
    return [name for name in worth_listing(sorted(names), "") if name not in known]


def named(folder: str, names: Iterable[str], script: str) -> list[str]:
    """The files with these names, each relative to `folder` or a path to below it; of a folder, all files below it.

    Raises ScriptError.
    """
    found: dict[str, None] = {}
    for name in names:
        path = _below(folder, name)
        if path == script:
            raise ScriptError(f"{escape(name)[:200]} is the script itself, which its digest covers")
        if os.path.isdir(os.path.join(folder, path)):
            found |= dict.fromkeys(worth_listing(_walked(folder, path), script))
        else:
            found[path] = None
    return sorted(found)


def _below(folder: str, name: str) -> str:
    """`name` relative to `folder`, of which it names an entry."""
    for path in (os.path.join(folder, name), os.path.abspath(name)):
        parent = os.path.realpath(os.path.dirname(os.path.normpath(path)))
        relative = os.path.relpath(os.path.join(parent, os.path.basename(os.path.normpath(path))), folder)
        if os.path.lexists(path) and relative != "." and not relative.startswith("../") and relative != "..":
            return relative
    if os.path.lexists(path) or os.path.lexists(os.path.join(folder, name)):
        raise ScriptError(f"{escape(name)[:200]} is not below {escape(folder)[:200]}, where the script is")
    raise ScriptError(f"{escape(name)[:200]} is no file below {escape(folder)[:200]}")


def _walked(folder: str, path: str) -> Iterator[str]:
    count = 0
    for parent, folders, names in os.walk(os.path.join(folder, path)):
        folders[:] = sorted(each for each in folders if not each.startswith(".") and each != "__pycache__")
        count += len(names) + len(folders)
        if count > WALKED_MAX:
            raise ScriptError(f"{escape(path)[:200]} has more than {WALKED_MAX} entries")
        for name in sorted(names):
            if not name.endswith(".pyc") and not os.path.islink(os.path.join(parent, name)):
                yield os.path.relpath(os.path.join(parent, name), folder)


def digests(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each file. Raises ScriptError for a name that cannot be listed, a file too large, or too many."""
    found: dict[str, str] = {}
    total = 0
    for path in paths:
        fault = path_fault(path)
        if fault:
            raise ScriptError(f"the file {escape(path)[:200]!r} {fault}")
        data = read_beside(folder, path)
        if data is None:
            raise ScriptError(f"{path} is not in {escape(folder)[:200]}")
        total += len(data)
        if total > FILES_MAX_BYTES:
            raise ScriptError(f"the files have more than {FILES_MAX_BYTES >> 20} MiB together, with {path}")
        found[path] = hex_digest(data)
        if len(found) > FILES_MAX:
            raise ScriptError(f"more than {FILES_MAX} files are to be listed; name those that the script needs")
    return found


def read_beside(folder: str, path: str) -> bytes | None:
    """The bytes of a regular file; None if it does not exist. Raises ScriptError for other kinds, and for symbolic links."""
    whole = os.path.join(folder, path)
    if os.path.realpath(whole) != os.path.join(os.path.realpath(folder), path):
        raise ScriptError(f"{escape(path)[:200]} is a symbolic link, or in one: only files are listed")
    try:
        for _ in range(READS_MAX):
            data = _read_calm(whole, path)
            if data is not None:
                return data
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ScriptError(f"{escape(path)[:200]} cannot be read: {error.strerror}") from error
    raise ScriptError(f"{escape(path)[:200]} changes while it is read")


def _read_calm(whole: str, path: str) -> bytes | None:
    """The bytes; None if they changed meanwhile."""
    fd = os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise ScriptError(f"{escape(path)[:200]} is not a regular file")
        if before.st_size > FILE_MAX_BYTES:
            raise ScriptError(f"{escape(path)[:200]} has more than {FILE_MAX_BYTES >> 20} MiB")
        data = bytearray()
        while len(data) <= FILE_MAX_BYTES and (part := file.read(FILE_MAX_BYTES + 1 - len(data))):
            data += part
        after = os.fstat(fd)
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and len(data) == after.st_size
    return bytes(data) if same else None
