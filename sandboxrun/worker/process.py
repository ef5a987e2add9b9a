"""The process around the request loop: its main thread, its signals, and the processes that a handler forks."""

from __future__ import annotations

import _thread
import os
import sys

from sandboxrun.errors import ConfigError
from sandboxrun.worker.output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any, NoReturn
else:
    import _signal as signal  # signal makes enums of its numbers, and importing enum takes a millisecond


def is_multiprocessing_child() -> bool:
    """Whether this is a child of multiprocessing, which imports the script again: its `worker.run()` does nothing."""
    module = sys.modules.get("multiprocessing.process")
    if module is None:
        return False
    return module.parent_process() is not None or bool(getattr(module.current_process(), "_inheriting", False))


def in_main_thread() -> bool:
    try:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    except ValueError:  # "signal only works in main thread"
        return False
    return True


def check_main_thread() -> None:
    """Raise ConfigError unless this is the main thread, and no event loop runs in it."""
    if not in_main_thread():
        raise ConfigError(
            "worker.run() was called in a thread, which gets no signals: expected in the main thread, at the end of the script",
            hint="worker.run()",
        )
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        raise ConfigError(
            "worker.run() was called in a running event loop: expected outside of any coroutine, at the end of the script, "
            "because it starts a loop of its own",
            hint="worker.run()",
        )


def leave(code: int) -> NoReturn:
    """Flush the output and end the process at once."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112  # a stream of the script's; the process ends in any case
            continue
    os._exit(code)


def leave_child(error: BaseException | None) -> NoReturn:
    """End a forked process that returns from the handler, because only its parent answers.

    The exit code is that of sys.exit(), 1 for any other `error`, else 0.
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
        self._masks: dict[int, Any] = {}  # signal masks of threads during fork
        self.forked: list[Callable[[], None]] = []  # called in each child right after fork

    def install(self, end: Callable[[], object]) -> None:
        """Call `end` at SIGTERM, and at SIGINT (Ctrl-C) unless the script handles it. `end` may only set a flag.

        asyncio's add_signal_handler is not used, because a handler can break its wake-up descriptor and a child inherits it.
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
        """Hold signals back during fork, because a child that gets one before its handlers are reset would lose it."""
        self._masks[_thread.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

    def _unblock(self) -> None:
        mask = self._masks.pop(_thread.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _after_fork(self) -> None:
        # If the script called add_signal_handler, asyncio's wake-up descriptor is shared with the parent, and a signal to
        # the child would arrive in the parent's loop.
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
