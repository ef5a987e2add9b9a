"""sandboxrun lock."""

from __future__ import annotations

import os

from sandboxrun.cli.parser import Parser
from sandboxrun.errors import ScriptError, UsageError
from sandboxrun.log import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from sandboxrun.packages.locking import LockFile, Script

_EPILOG = """\
examples:
  sandboxrun lock greeter                    worker.py with all files that git tracks in the folder greeter
  sandboxrun lock worker.py helpers.py pkg   the script with one file and one folder
  sandboxrun lock worker.py                  the files that it lists already, with the digests that they have now
  sandboxrun lock greeter --check            in CI, before the commit that is published

FOLDER lists the files that git tracks below it, and keeps those that the script lists already. It leaves out tests, locks,
names that begin with a dot, README, LICENSE and project files such as pyproject.toml: the worker reads none of them, and each
edit of one would change the worker's digest.

uv resolves the dependencies, with the package index of pip's configuration or of uv's variables. Versions in the lock stay
while they fit. Nothing of the script or its folder is run or built, and its [tool.uv] is ignored.

exit codes: 65 if --check finds something, or there is no solution; 69 if the index does not answer; 78 without uv"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun lock",
        description="Write the digests of a script's other files, and of the lock of its packages, into its block # /// script.",
        epilog=_EPILOG,
    )
    parser.add_argument("target", metavar="FILE|FOLDER", help="a script, or a folder with worker.py")
    parser.add_argument(
        "names", metavar="FILE", nargs="*", help="exactly these files beside it, or below these folders"
    )
    parser.add_argument("--check", action="store_true", help="change nothing, and print what is not current")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    parser.add_argument(
        "--pylock", action="store_true", help="write pylock.NAME.toml, with the URLs of wheels (PEP 751)"
    )
    parser.add_argument(
        "--exclude-newer", metavar="DATE", help="take nothing that was uploaded later, now and from now on"
    )
    options = parser.parse_args(args)
    if options.check and (options.upgrade or options.pylock or options.exclude_newer is not None):
        raise UsageError(
            "--check changes nothing, so it goes with no other option", hint=_again_hint(options, "--check")
        )

    from sandboxrun.packages import locking

    script = locking.open_script(_script(options.target))
    lock = locking.lock_beside(script)
    files, left_out = _files(script, options)
    if options.check:
        code = _check(script, lock, files, options)
    else:
        if options.exclude_newer is not None:
            script = _dated(script, options)
        code = _write(script, lock, files, options)
    if left_out:
        _warn_left_out(options.target, [*files], left_out)
    return code


def _again_hint(options: argparse.Namespace, *more: str) -> str:
    import shlex

    return shlex.join(["sandboxrun", "lock", options.target, *options.names, *more])


def _script(target: str) -> str:
    """The path of the script. Raises UsageError."""
    if os.path.isfile(target) or (os.path.islink(target) and not os.path.isdir(target)):
        return target
    if os.path.isfile(os.path.join(target, "worker.py")):
        return os.path.join(target, "worker.py")
    what = "has no worker.py" if os.path.isdir(target) else "is neither a folder nor a file"
    raise UsageError(f"{escape(target)[:200]} {what}", hint=_script_hint(target))


def _script_hint(target: str) -> str:
    """For another script in the folder, or with a name like this."""
    import contextlib
    import difflib
    import shlex

    parent, name = os.path.split(target.rstrip("/"))
    with contextlib.suppress(OSError):
        if os.path.isdir(target):
            near = [os.path.join(target, each) for each in sorted(os.listdir(target)) if each.endswith(".py")]
        else:
            found = difflib.get_close_matches(name, os.listdir(parent or "."), 1)
            near = [os.path.join(parent, each) for each in found]
        if near:
            return f"sandboxrun lock {shlex.quote(near[0])}"
    return ""


def _files(script: Script, options: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """The digests of the files that the script is to list, and the Python files beside it that it does not. Raises ScriptError."""
    from sandboxrun.packages import listing

    left_out: list[str] = []
    if options.names:
        paths = listing.named(script.folder, options.names, script.name)
    else:
        is_folder = os.path.isdir(options.target)
        of_git = (listing.tracked(script.folder, os.environ) if is_folder else None) or []
        paths = sorted({*listing.worth_listing(of_git, script.name), *(path for path, _ in script.block.files)})
        paths = [path for path in paths if os.path.lexists(os.path.join(script.folder, path))]
        left_out = listing.left_out(script.folder, {*of_git, *paths, script.name}) if is_folder else []
    return listing.digests(script.folder, paths), left_out


def _warn_left_out(target: str, listed: list[str], left_out: list[str]) -> None:
    """A module that is not listed works here, and is missing where the script is fetched."""
    import shlex

    from sandboxrun.log import Log

    names = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
    hint = shlex.join(["sandboxrun", "lock", target, *sorted((*listed, *left_out))])
    Log().warning("lock", f"not listed, because git does not track it: {names}", hint=(hint,))


def _check(script: Script, lock: LockFile, files: dict[str, str], options: argparse.Namespace) -> int:
    from sandboxrun.packages import locking

    found = [*locking.stale_files(dict(script.block.files), files), *locking.stale_lock(script, lock)]
    for line in found:
        print(escape(line), flush=True)  # before the error
    if found:
        things = f"{len(found)} things are" if len(found) > 1 else "1 thing is"
        raise ScriptError(f"{script.name} is not current: {things} stale, as listed above", hint=_again_hint(options))
    print(escape(f"{script.name} is current"))
    return 0


def _dated(script: Script, options: argparse.Namespace) -> Script:
    """The script with another exclude-newer. Raises UsageError."""
    import datetime
    import shlex

    from sandboxrun.records import replace

    date = options.exclude_newer
    try:
        if date:
            datetime.datetime.fromisoformat(date)
    except ValueError:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        raise UsageError(
            f"--exclude-newer {escape(date)[:80]} is no date",
            hint=f"sandboxrun lock {shlex.quote(options.target)} --exclude-newer {today}",
        ) from None
    return replace(script, block=replace(script.block, exclude_newer=date.upper()))


def _write(script: Script, old: LockFile, files: dict[str, str], options: argparse.Namespace) -> int:
    from sandboxrun.config.script import lock_names
    from sandboxrun.packages import locking

    pylock = options.pylock or (old.text is not None and old.name.endswith(".toml"))
    is_same_form = old.name == lock_names(script.name)[1] or not options.pylock
    if locking.is_current(script, old) and is_same_form and not options.upgrade:
        new = old if script.block.dependencies else locking.LockFile(old.name, None)
    else:
        new = locking.new_lock(script, old, os.environ, pylock=pylock, upgrade=options.upgrade)
    if not script.block.dependencies and script.block.lock is None:
        old = new  # the lock beside it, if there is one, is that of another script
    changed = locking.write(script, new, files)
    lines = [*locking.changed_files(dict(script.block.files), files), *locking.changed_packages(old, new)]
    for line in lines:
        print(escape(line))
    if new.text is not None and new.text != old.text:
        print(escape(f"wrote {new.name}"))
    print(escape(f"wrote {script.name}" if changed else f"{script.name} is current"))
    return 0
