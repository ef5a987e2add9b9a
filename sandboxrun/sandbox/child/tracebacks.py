"""Runs in the worker's process: how an uncaught error is shown. Imported when the first one is."""

from __future__ import annotations

import os
import traceback as printer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types

_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + "/"


def shown(error: BaseException, traceback: types.TracebackType | None, script: str) -> str:
    """The traceback without frames of sandboxrun, also in what caused the error.

    If there are no other frames, it is a defect of sandboxrun, and all of it is of interest.
    """
    report = printer.TracebackException(type(error), error, traceback)
    reports = [report]
    while reports:
        current = reports.pop()
        frames = list(current.stack)
        first = next((n for n, frame in enumerate(frames) if frame.filename == script), 0)
        if any(frame.filename.startswith(_OURS) for frame in frames[:first]):
            # Without Python's own frames between sandboxrun and a handler, such as the first ones of a thread.
            frames = frames[first:]
        theirs = [frame for frame in frames if not frame.filename.startswith(_OURS)]
        if theirs:
            current.stack = printer.StackSummary.from_list(theirs)
        linked = (current.__cause__, current.__context__, *(getattr(current, "exceptions", None) or ()))
        reports += [other for other in linked if other is not None]
    return "".join(report.format())
