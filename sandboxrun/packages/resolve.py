"""Resolves the dependencies of a script to a lock, with uv.

uv sees neither the script nor its folder nor its `[tool.uv]`: it gets a file of requirements in an empty folder. It takes only
wheels and builds nothing, so it runs no code of a package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile

from sandboxrun.config.contents import canonical
from sandboxrun.errors import ConfigError, FetchError, ScriptError
from sandboxrun.installation import install_hint
from sandboxrun.log import escape
from sandboxrun.packages.lock import LOCK_MAX_BYTES
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packaging.requirements import Requirement

RESOLVE_SECONDS = 300.0
PYTHON_MIN = "3.11"  # the oldest that sandboxrun runs with
_OURS = "requirements.in"
_REQUIREMENT_TEXT = re.compile(r"[\w.,<>=!~*+\[\]();'\" -]+", re.ASCII)
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(?:;([^\\#]*))?", re.ASCII)
_FAULTS_MAX_CHARS = 600


@record
class Pin:
    """A package of a lock. `name` is canonical."""

    name: str
    version: str
    marker: str = ""


@record
class Wanted:
    """The dependencies to resolve. `script` is the name of its file; a pin is kept if it still fits."""

    script: str
    dependencies: tuple[str, ...]
    requires_python: str = ""
    exclude_newer: str = ""
    pins: tuple[Pin, ...] = ()


def requirement(text: str) -> Requirement:
    """Parse a dependency. Raises ScriptError for one that is none, or has a URL."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise ScriptError(f"the dependency {escape(text)[:80]!r} is no requirement: {escape(reason)[:200]}") from error
    if parsed.url is not None or not _REQUIREMENT_TEXT.fullmatch(str(parsed)):
        raise ScriptError(f"the dependency {escape(text)[:80]!r} is no name with versions")
    return parsed


def resolve(wanted: Wanted, environ: Mapping[str, str], *, pylock: bool = False, index: str | None = None) -> bytes:
    """The text of a lock: hashed requirements, or PEP 751. Raises ScriptError if there is no solution, FetchError if the index
    does not answer, ConfigError without uv."""
    from sandboxrun.packages.uv_settings import uv_settings

    requirements = [str(requirement(text)) for text in wanted.dependencies]
    program = uv(environ)
    env, arguments = uv_settings(environ, uv=program, index=index)
    name = "pylock.made.toml" if pylock else "made.lock"
    command = [
        *(program, "pip", "compile", _OURS, "--output-file", name),
        *(["--format", "pylock.toml"] if pylock else ["--generate-hashes"]),
        *(
            "--universal",
            "--only-binary",
            ":all:",
            "--no-config",
            "--no-sources",
            "--no-header",
            "--no-progress",
            "--quiet",
        ),
        *("--color", "never", "--no-emit-index-url", "--python", sys.executable),
        *("--python-version", _minimum(wanted.requires_python), *arguments),
        *(["--exclude-newer", wanted.exclude_newer] if wanted.exclude_newer else []),
    ]
    with tempfile.TemporaryDirectory(prefix="sandboxrun-lock-") as folder:
        _write(os.path.join(folder, _OURS), requirements)
        if wanted.pins:
            _write(os.path.join(folder, name), _as_pylock(wanted.pins) if pylock else _as_requirements(wanted.pins))
        _run(command, folder, env)
        with open(os.path.join(folder, name), "rb") as file:
            made = file.read(LOCK_MAX_BYTES + 1)
    if len(made) > LOCK_MAX_BYTES:
        raise ScriptError(f"the lock of {wanted.script} would have more than {LOCK_MAX_BYTES >> 20} MiB")
    return _shown(made.decode(), wanted.script, pylock=pylock).encode()


def uv(environ: Mapping[str, str]) -> str:
    """The path of uv: that of the Python package, else on PATH. Raises ConfigError."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        pass
    path = shutil.which("uv", path=environ.get("PATH"))
    if path is None or not os.path.isabs(path):
        raise ConfigError("uv is not installed, which resolves dependencies", hint=install_hint(["uv"]))
    return path


def pins(lock: bytes, name: str) -> tuple[Pin, ...]:
    """The names and versions of a lock, as far as it can be read."""
    text = lock[:LOCK_MAX_BYTES].decode("utf-8", "replace")
    if not name.endswith(".toml"):
        found = [match for line in text.splitlines() if (match := _PIN.match(line)) is not None]
        return tuple(Pin(canonical(each[1]), each[2], (each[3] or "").strip()) for each in found)
    import tomllib

    try:
        packages = tomllib.loads(text).get("packages", [])
        return tuple(
            Pin(canonical(str(each["name"])), str(each["version"]), str(each.get("marker", "")))
            for each in packages
            if "version" in each
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ()


def _minimum(requires_python: str) -> str:
    """The oldest Python that the lock is for. Not that of this machine, so that each machine makes the same lock."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import Version

    try:
        specifiers = list(SpecifierSet(requires_python))
    except InvalidSpecifier as error:
        raise ScriptError(f"requires-python = {requires_python[:80]!r} is no list of versions") from error
    versions = [Version(PYTHON_MIN)]
    versions += [
        Version(each.version.removesuffix(".*")) for each in specifiers if each.operator in (">=", "==", "~=", ">")
    ]
    return str(max(versions))


def _run(command: Sequence[str], folder: str, env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, timeout=RESOLVE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"uv did not resolve the dependencies in {RESOLVE_SECONDS:.0f} s") from error
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise _fault(done.stderr.decode("utf-8", "replace"))


def _fault(text: str) -> ScriptError | FetchError:
    """What uv says, as one line."""
    words = re.sub(r"\s*(?:[×╰─▶│├]+|\bcause:|\berror:)\s*", " ", text).partition("\nhint:")[0]
    line = escape(" ".join(words.split())).partition(" Consider adding")[0][:_FAULTS_MAX_CHARS]
    unsolved = "No solution found when resolving dependencies"
    if unsolved in line or "Failed to resolve dependencies" in line:
        return ScriptError(f"the dependencies have no solution: {line.removeprefix(unsolved).lstrip(': ')}")
    return FetchError(f"uv cannot resolve the dependencies: {line}")


def _write(path: str, lines: Sequence[str]) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _as_requirements(kept: Sequence[Pin]) -> list[str]:
    """Without hashes: uv would take over those of an older lock, and those of the index are what counts."""
    return [f"{pin.name}=={pin.version}" + (f" ; {pin.marker}" if pin.marker else "") for pin in kept]


def _as_pylock(kept: Sequence[Pin]) -> list[str]:
    import json  # whose strings are those of TOML

    lines = ['lock-version = "1.0"', 'created-by = "sandboxrun"']
    for pin in kept:
        lines += ["[[packages]]", f"name = {json.dumps(pin.name)}", f"version = {json.dumps(pin.version)}"]
        lines += [f"marker = {json.dumps(pin.marker)}"] if pin.marker else []
    return lines


def _shown(text: str, script: str, *, pylock: bool) -> str:
    """With a header of our own, and the script in the place of our file of requirements."""
    shown = escape(script)
    lines = [f"# Made by: sandboxrun lock {shown}{' --pylock' if pylock else ''}"]
    for line in text.splitlines():
        lines.append(line.replace(f"-r {_OURS}", shown) if line.lstrip().startswith("#") else line)
    return "\n".join(lines) + "\n"
