"""Runs in the worker's process: the Python that a script finds, apart from the confinement.

bootstrap.py imports this before it confines itself. Nothing here decides what a script may do: a script that undoes all
of it gains nothing.
"""

from __future__ import annotations

import os
import sys

from sandboxrun.sandbox.child import health, hooks, names, patches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from typing import Any

# What nearly every script imports, and what that imports later.
_COMMON = ("sandboxrun.worker", "sandboxrun.worker.serial")

_OF_SPEC = ("sandboxrun.spec.interface", "sandboxrun.worker.checked")  # if there is one beside the script


class SourceLoader:
    """Gives linecache the source of a script that is no file, for tracebacks."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, name: str) -> str:
        return self._source


class AfterImport:
    """An entry of sys.meta_path: calls a function with each of some modules once the script has imported it."""

    def __init__(self, functions: dict[str, Callable[[Any], None]]) -> None:
        self._functions = functions

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in self._functions:
            return None
        import _frozen_importlib_external as external

        then = self._functions.pop(name)
        spec = external.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                then(module)

            loader.exec_module = exec_module
        return spec


def warm_up() -> None:
    """Import what most scripts need. Costs the others nothing, because the child waits for the supervisor meanwhile."""
    try:
        for name in _COMMON:
            __import__(name)
    except Exception:
        return  # the script that needs it will say so


def share_health(fd: int) -> None:
    """Before the confinement: what sandboxrun.worker says of itself goes to the page that is open as `fd`."""
    health.share(fd)


def show_key(key: str) -> None:
    """Show the worker's key in place of the first argument, and the others behind it, to ps(1) and in sys.orig_argv."""
    place = len(sys.orig_argv) - len(sys.argv) + 1
    show_arguments([*sys.orig_argv[:place], key, *sys.orig_argv[place + 1 :]])


def show_arguments(words: list[str]) -> None:
    """Show others than those that this process was started with, as far as there is room, to ps(1) and in sys.orig_argv."""
    try:
        with open("/proc/self/stat", "rb") as file:  # arg_start and arg_end, proc_pid_stat(5)
            start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
        data = b"\0".join(map(os.fsencode, words))[: end - start - 1]
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(data.ljust(end - start, b"\0"))
        sys.orig_argv[:] = words
    except (OSError, ValueError):
        return  # this host does not let a process write so to its memory: the name stays


def prepare(plan: dict[str, Any]) -> None:
    """Before the script is loaded: its output, its import path, exit() and the hooks for uncaught errors."""
    output: Any = sys.stdout
    output.reconfigure(line_buffering=True)  # it is a pipe, and somebody may read along
    sys.prefix = sys.exec_prefix = plan["prefix"]
    if plan["clock"] is not None or plan["seed"] is not None:
        _fix(plan["clock"], plan["seed"])
    _find_spec(plan["script_path"])
    sys.path[:0] = plan["script_path"]
    if plan["packages"] is not None:
        from sandboxrun.sandbox.child import packages

        packages.isolate(plan["script_path"], plan["packages"], plan["sites"], debug=plan["inspect"] is not None)
    import _sitebuiltins
    import builtins

    builtins.exit, builtins.quit = _sitebuiltins.Quitter("exit", "Ctrl-D"), _sitebuiltins.Quitter("quit", "Ctrl-D")
    hooks.install(plan)


def _fix(clock: float | None, seed: int | None) -> None:
    from sandboxrun.sandbox.child import fixed

    if clock is not None:
        fixed.stop_clock(clock)
    if seed is not None:
        reseed = fixed.seeder(seed)
        reseed()
        sys._sandboxrun_reseed = reseed  # type: ignore[attr-defined]  # sandboxrun.worker calls it before each request


def _find_spec(script_path: list[str]) -> None:
    """Look for a spec.json beside the script, and import what reads it while the supervisor prepares the run.

    Nothing of the script can be imported yet, because its folder is not on the import path.
    """
    path = f"{script_path[0]}/spec.json" if script_path else ""
    sys._sandboxrun_spec = path if path and os.path.exists(path) else ""  # type: ignore[attr-defined]
    if not sys._sandboxrun_spec:  # type: ignore[attr-defined]
        return
    utils: Any = type(sys)("email.utils")
    utils.parsedate_to_datetime = lambda text: None
    # jsonschema_rs takes the date of its build from there, and for nothing else: half of its import.
    given = sys.modules.setdefault("email.utils", utils)
    try:
        for name in _OF_SPEC:
            __import__(name)
    except Exception:
        return  # worker.run() will say so
    finally:
        if given is utils:
            del sys.modules["email.utils"]


def patch(plan: dict[str, Any], questions: int, answers: int) -> None:
    """After "go", when the supervisor answers: look-ups, sockets, metadata, redis-py, and the debugger if it is asked for.

    `questions`, `answers`: descriptors, as bootstrap.py has them.
    """
    asker = names.Names(questions, answers)
    asker.patch()
    patches.patch_sockets(asker)
    patches.patch_metadata()
    shown: set[str] = set()
    patches.patch_system(lambda command, status: hooks.explain_command(plan, shown, command, status))
    key, pid = plan["key"], os.getpid()
    wrap_redis = lambda module: _wrap_redis(module, key, pid)  # noqa: E731
    sys.meta_path.insert(0, AfterImport({"redis.commands.core": wrap_redis, "sqlite3": _watch_sqlite}))
    if plan["inspect"]:
        from sandboxrun.sandbox.child import debugger

        debugger.listen(*plan["inspect"])


def _wrap_redis(module: Any, key: str, pid: int) -> None:
    from sandboxrun.sandbox.child import own_pid

    own_pid.wrap(module.HashCommands, key, pid)


def _watch_sqlite(module: Any) -> None:
    try:
        from sandboxrun.sandbox.child import databases

        databases.watch(module)
    except Exception:
        return  # the script's own sqlite3.py, or no memory is left: an error is shown without a grant
