"""An event loop that handlers' tasks, signal handlers and forked children cannot end."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from sandboxrun.errors import SandboxrunError
from sandboxrun.protocol.reply import message_of
from sandboxrun.worker import process
from sandboxrun.worker.output import say

ESCAPES_MAX = 50  # errors within a second; more means that the event loop has lost its descriptors


def run(
    main: Callable[[], Coroutine[Any, Any, None]], is_child: Callable[[], bool], warn: Callable[[str], None]
) -> None:
    """Run `main` to its end in a new event loop. Anything else that stops the loop, as SystemExit in a task, is a warning.

    `is_child`: whether a handler has forked this process, which then ends. A loop that cannot go on ends the process.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main())
        times: deque[float] = deque(maxlen=ESCAPES_MAX)
        while not task.done():
            try:
                loop.run_until_complete(task)
            except BaseException as error:
                if is_child():
                    process.leave_child(error)
                if not task.done():
                    _escaped(error, times, warn)
        task.result()


def _escaped(error: BaseException, times: deque[float], warn: Callable[[str], None]) -> None:
    text = message_of(error)
    times.append(time.monotonic())
    if len(times) == ESCAPES_MAX and times[-1] - times[0] < 1:
        say(f"the event loop cannot go on: {text}", "error")
        process.leave(SandboxrunError.exit_code)  # closing the loop would use the loop
    warn(f"the event loop was stopped by {type(error).__name__} ({text}) and goes on")


def end_in_child(loop: asyncio.AbstractEventLoop) -> None:
    """Called in a child right after fork: the child ends as soon as it returns to the event loop, which its parent runs."""
    ready = getattr(loop, "_ready", None)  # a private name of CPython's loop
    if ready is not None:
        ready.clear()
    loop.call_soon(process.leave_child, None)
    # Otherwise a multiprocessing child that was started by a handler's thread would wait at exit for that thread.
    queues = getattr(concurrent.futures.thread, "_threads_queues", None)
    if queues is not None:
        queues.clear()
