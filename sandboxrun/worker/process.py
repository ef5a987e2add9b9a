"""The process around the request loop: where it may run, its signals, and the processes that a handler forks."""

from __future__ import annotations

import _thread
import os
import signal
import sys

from sandboxrun.errors import ConfigError
from sandboxrun.worker.output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


def is_multiprocessing_child() -> bool:
    """Whether this is a child of multiprocessing, which imports the script again: its `worker.run()` does nothing."""
    found = sys.modules.get("multiprocessing.process")
    if found is None:
        return False
    return found.parent_process() is not None or bool(getattr(found.current_process(), "_inheriting", False))


def in_main_thread() -> bool:
    try:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    except ValueError:  # "signal only works in main thread"
        return False
    return True


def check_place() -> None:
    """Raise ConfigError unless this is the main thread, and no event loop runs in it."""
    if not in_main_thread():
        raise ConfigError(
            "worker.run() was called in a thread, which gets no signals: expected in the main thread, at the end of the script",
            hint="worker.run()",
        )
    found = sys.modules.get("asyncio")
    if found is not None and found._get_running_loop() is not None:
        raise ConfigError(
            "worker.run() was called in a running event loop: expected outside of any coroutine, at the end of the script, "
            "because it starts a loop of its own",
            hint="worker.run()",
        )


def leave(code: int) -> NoReturn:
    """End the process at once, with what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112  # of a stream of the script's, and nobody is left to be told
            continue
    os._exit(code)


def leave_child(error: BaseException | None) -> NoReturn:
    """End a process that a handler has forked, when it comes back from the handler: only its parent answers.

    Its exit code is that of sys.exit(), 1 for another `error`, else 0.
    """
    code = 0
    if error is not None:
        code = 1
        if issubclass(type(error), SystemExit):
            given = error.args[0] if error.args else None
            code = given & 0xFF if isinstance(given, int) else int(given is not None)
        else:
            try:
                sys.excepthook(type(error), error, error.__traceback__)
            except BaseException:
                say(f"a process that a handler had forked ended in {type(error).__name__}")
    leave(code)


class Signals:
    """SIGTERM and SIGINT end the worker in order; a second SIGINT ends it at once. Forked children get neither."""

    def __init__(self) -> None:
        self._installed: list[tuple[int, Any]] = []
        self._masks: dict[int, Any] = {}  # of threads that fork at this moment
        self.forked: list[Callable[[], None]] = []  # called in a child, right after fork

    def install(self, end: Callable[[], object]) -> None:
        """Call `end` at SIGTERM, and at SIGINT (Ctrl-C) unless the script handles it. `end` may only set a flag.

        Not by asyncio's add_signal_handler: its wake-up descriptor is one that a handler can break or a child inherit.
        """

        def terminate(*_: object) -> None:
            end()

        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            end()

        signal.signal(signal.SIGTERM, terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        self._installed = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._after_fork)

    def _block(self) -> None:
        """A signal that reaches a child before its handlers are reset would be lost: it waits until they are."""
        self._masks[_thread.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

    def _unblock(self) -> None:
        mask = self._masks.pop(_thread.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _after_fork(self) -> None:
        # The script may have called add_signal_handler: asyncio's wake-up descriptor is shared with the parent then, and a
        # signal to the child would arrive in the parent's loop.
        try:
            signal.set_wakeup_fd(-1)
            for number, ours in self._installed:
                if signal.getsignal(number) is ours:
                    signal.signal(number, signal.SIG_DFL)
        except ValueError:
            pass  # not in the child's main thread: a subinterpreter
        for act in self.forked:
            act()
        self._unblock()
