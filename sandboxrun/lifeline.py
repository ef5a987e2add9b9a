"""Ends a child process together with its parent."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a new child: have the kernel send it SIGTERM when the thread that made it ends (PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
