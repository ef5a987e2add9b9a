"""The command line: parses, calls, prints, exits. The only place that does the last two."""

from __future__ import annotations

import gc
import os
import sys

from sandboxrun import modulecache
from sandboxrun.cli.commands import COMMANDS, CONFINING
from sandboxrun.sandbox.supervisor.ending import Signalled, catch, received
from sandboxrun.timing import mark  # by name: the module of a command is called trace too

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from sandboxrun.errors import SandboxrunError

# Options of a run that take no value of their own word.
SWITCHES = frozenset(
    "--debug --reload --cached-only --yes --no-log --quiet --json-logs --inspect --inspect-wait --wait".split()
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point: exits with the code that `_main` returns, and without Python's own tear-down, which takes longer
    than to end a worker does: what must be undone has been undone by then, by `finally` and `with`."""
    _open_standard_descriptors()
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        mark("main")
        code = _main(args)
        mark("end")
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except Signalled as signalled:
        code = signalled.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more while it shuts down
        code = 141
    except Exception as error:
        code = _explain(error, args)
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            pass
    os._exit(code)


def redish_script() -> NoReturn:
    """The entry point of the command redish."""
    main(["redish", *sys.argv[1:]])


def _explain(error: Exception, args: list[str]) -> int:
    """Print the line of an error; its exit code."""
    from sandboxrun.errors import SandboxrunError
    from sandboxrun.log import Log

    if "--debug" in args:
        import traceback

        traceback.print_exception(error)
    log = Log(json="--json-logs" in args)
    if isinstance(error, SandboxrunError):
        message, hint = _meant(error, args)
        log.error("error", message, hint=hint, exit_code=error.exit_code)
        return error.exit_code
    number = received()
    if number:  # it came while C code ran, which may make another error of it
        return 128 + number
    log.error(
        "defect",
        f"{type(error).__name__}: {error} (a defect of sandboxrun: run it again with --debug and report what it prints)",
    )
    return SandboxrunError.exit_code


def _meant(error: SandboxrunError, args: list[str]) -> tuple[str, tuple[str, ...]]:
    """Message and hint: `sandboxrun stpo greeter` is a run of a worker that nobody has configured."""
    from sandboxrun.errors import NotConfigured

    if isinstance(error, NotConfigured) and args[0] not in COMMANDS:
        from sandboxrun.cli.mistakes import command_meant

        meant = command_meant(args, names_of(args))
        if meant is not None:
            command, line = meant
            return f"{error}: did you mean the command {command}?", (line,)
    if error.hint and any(arg.startswith("--redis") for arg in args):
        from sandboxrun.cli.mistakes import with_redis

        return str(error), with_redis(error.hint, args)
    if any("redis-cli" in line for line in error.hint):
        from sandboxrun.cli.mistakes import with_user

        return str(error), with_user(error.hint)
    return str(error), error.hint


def _open_standard_descriptors() -> None:
    """Started with one closed (`<&-`), a socket or file of ours would get its number, and the worker with it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one


def _main(args: list[str]) -> int:
    """Import the command when it is called: start-up is a feature."""
    gc.disable()  # what is imported from here on stays; a run enables it again when its worker is told to go
    modulecache.install()
    if not args or args in (["--help"], ["-h"]):
        from sandboxrun.cli import help

        return help.main([]) if args else help.without_arguments()
    if args[0] == "help" and len(args) == 2 and args[1] in COMMANDS:
        args = [args[1], "--help"]
    if sys.platform != "linux":
        _check_system(args)
    if args[0] not in COMMANDS:
        return _run(args)
    name, *rest = args
    if name == "run":
        return _run(rest, named=True)
    module = __import__(f"sandboxrun.cli.{name}", fromlist=["main"])
    gc.enable()
    code: int = module.main(rest)
    return code


def _check_system(args: list[str]) -> None:
    """Raise SandboxError if the command confines a worker, which only Linux can."""
    name, rest = (args[0], args[1:]) if args[0] in COMMANDS else ("run", args)
    if "--help" in rest or "-h" in rest:
        return
    if name in CONFINING or (name == "run" and worker_named(rest) is not None):
        from sandboxrun.sandbox import system

        raise system.refusal()


def _run(args: list[str], *, named: bool = False) -> int:
    """Spawn the child before anything else: it gets ready while this process imports what a run needs, and ends if this
    process does. `named`: the word `run` was given, so no other command can be meant."""
    catch()
    worker = worker_named(args)
    spawned = None
    if worker is not None:
        from sandboxrun.sandbox.supervisor.spawn import Spawned

        try:
            spawned = Spawned(":".join((*worker, "h")), warm=True)
        except OSError:
            pass  # it is tried again, and said, once all else has been looked at
    elif not named:
        from sandboxrun.cli.mistakes import check_command

        check_command(args, names_of(args))
    from sandboxrun.cli import run

    # Without an option there is nothing to parse, which would take longer than all that comes before Redis.
    return run.run_plainly(*worker, spawned) if worker is not None and len(args) == 2 else run.main(args, spawned)


def worker_named(args: list[str]) -> tuple[str, str] | None:
    """TYPE and ID of a run; None if the arguments are wrong, or ask for help. They are checked later."""
    if any(arg in ("-h", "--help", "--version") for arg in args):
        return None
    names = names_of(args)
    return (names[0], names[1]) if len(names) == 2 else None


def names_of(args: list[str]) -> list[str]:
    """The arguments of a run that are neither an option nor the value of one."""
    names = []
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("-"):
            names.append(arg)
        elif "=" not in arg and arg not in SWITCHES and arg not in ("-h", "--help", "--version"):
            next(rest, None)  # its value
    return names
