"""The command line: parses, calls, prints, exits. The only place that does the last two."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from sandboxrun.errors import SandboxrunError
from sandboxrun.log import Log
from sandboxrun.trace import mark  # by name: the module of a command is called trace too

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

COMMANDS = (
    "run",
    "check",
    "call",
    "info",
    "dead",
    "stream",
    "diff",
    "approve",
    "audit",
    "encrypt",
    "cache",
    "init",
    "dev",
    "show",
    "set",
    "perms",
    "trace",
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point: exits with the code that `_main` returns, and without Python's own tear-down, which takes longer
    than to end a worker does: what must be undone has been undone by then, by `finally` and `with`."""
    _open_standard_descriptors()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        mark("main")
        code = _main(args)
        mark("end")
        if sys.stdout is not None:
            sys.stdout.flush()
    except SandboxrunError as error:
        if debug:
            import traceback

            traceback.print_exc()
        Log(json="--json-logs" in args).error("error", str(error), exit_code=error.exit_code)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more while it shuts down
        code = 141
    except Exception as error:
        if debug:
            raise
        Log(json="--json-logs" in args).error(
            "defect",
            f"{type(error).__name__}: {error} (a defect of sandboxrun: run it again with --debug and report what it prints)",
        )
        code = SandboxrunError.exit_code
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
    os._exit(code)


def _open_standard_descriptors() -> None:
    """Started with one closed (`<&-`), a socket or file of ours would get its number, and the worker with it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one


def _main(args: list[str]) -> int:
    """Each command is a module with `main(args) -> exit code`, imported when it is called: start-up is a feature."""
    name, rest = (args[0], args[1:]) if args and args[0] in COMMANDS else ("run", args)
    module = importlib.import_module(f"sandboxrun.cli.{name}")
    code: int = module.main(rest)
    return code
