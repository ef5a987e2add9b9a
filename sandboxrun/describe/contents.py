"""The files and packages of a script, as `show` and `diff` print them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxrun.config.contents import Contents, changed, changed_file
from sandboxrun.config.worker import Asked
from sandboxrun.describe.paint import Paint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

ROW_CHARS = 88
FILES_SHOWN = 10


def as_json(now: Contents | None, approval: Asked | None) -> Json | None:
    """None for a script without a block. `new`: not as in the last approval, if there was one."""
    if now is None:
        return None
    before = now if approval is None else approval.contents
    files = [{"path": path, "sha256": digest, "new": changed_file(before, path, digest)} for path, digest in now.files]
    packages = [
        {
            "name": package.name,
            "version": package.version,
            "new": changed(before, package) is not None,
            "change": changed(before, package) or "",
        }
        for package in now.packages
    ]
    return {
        "files": files,
        "packages": packages,
        "dependencies": list(now.dependencies),
        "lock": now.lock,
        "requires_python": now.requires_python,
    }


def rows(script: Json, paint: Paint) -> Iterator[str]:
    """Of `as_json`, for the part of a report about code. What is new has a + before it."""
    if script["requires_python"]:
        yield paint.row("python", script["requires_python"])
    files = script["files"]
    if files:
        names = [_marked(file["path"], file["new"]) for file in files[:FILES_SHOWN]]
        more = [f"and {len(files) - FILES_SHOWN} more"] if len(files) > FILES_SHOWN else []
        yield from _row(f"{len(files)} file{'s' * (len(files) > 1)}", [*names, *more], paint)
    packages = [
        _marked(f"{package['name']} {package['version']}{package['change']}", package["new"])
        for package in script["packages"]
    ]
    if packages:
        yield from _row("packages", packages, paint)
    elif script["dependencies"]:
        where = "their lock is not here yet" if script["lock"] else "without a lock"
        yield from _row("needs", [*script["dependencies"][:-1], f"{script['dependencies'][-1]} ({where})"], paint)
    if script["lock"]:
        yield paint.row("lock", script["lock"])
    elif packages:
        yield paint.row("lock", "none: no digest pins these packages")


def file_changes(now: Contents | None, approval: Asked | None) -> Iterator[str]:
    """For `diff`: which files changed. They need no approval, because the pin of the script covers them."""
    if now is None or approval is None:
        return
    new = [path for path, digest in now.files if changed_file(approval.contents, path, digest)]
    if new:
        more = f" and {len(new) - FILES_SHOWN} more" if len(new) > FILES_SHOWN else ""
        yield f"of {len(now.files)} files, new or changed: {', '.join(new[:FILES_SHOWN])}{more}"


def _marked(text: str, new: bool) -> str:
    return f"+ {text}" if new else text


def _row(name: str, texts: list[str], paint: Paint) -> Iterator[str]:
    """Rows of at most ROW_CHARS, broken between texts."""
    line = ""
    for number, text in enumerate(texts, 1):
        part = text + "," * (number < len(texts))
        if line and len(line) + len(part) >= ROW_CHARS:
            yield paint.row(name, line)
            name, line = "", ""
        line = f"{line} {part}".lstrip()
    yield paint.row(name, line)
