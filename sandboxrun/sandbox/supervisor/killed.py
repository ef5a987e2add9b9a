"""Runs in the supervisor: what is said of a worker that a signal has ended. Imported when one has."""

from __future__ import annotations

import signal

# Why the kernel sends it, signal(7).
_MEANINGS: dict[int, str] = {
    signal.SIGSEGV: "native code used memory that it does not have",
    signal.SIGBUS: "native code used memory behind which there is no file or device",
    signal.SIGABRT: "the worker or a library called abort()",
    signal.SIGILL: "native code has an instruction that this processor does not know",
    signal.SIGFPE: "native code has divided by zero, or a result does not fit",
    signal.SIGTRAP: "native code has a breakpoint, and no debugger is attached",
    signal.SIGSYS: "native code used the system call table of another architecture",
    signal.SIGPIPE: "the worker wrote to a pipe or socket that nobody reads",
    signal.SIGXFSZ: "the worker wrote beyond the limit of a file's size",
    signal.SIGALRM: "a timer of the worker has run out",
}
_OUT_OF_MEMORY = "the machine had no memory left, and the kernel has ended a process"
_FROM_OUTSIDE = "sent by the worker itself or by another process, not by sandboxrun"
_FATE = (
    "a request that it had begun is not lost: the next start, or another worker of the type, begins it again, at most "
    "maxDeliveries times in all"
)


def message(key: str, number: int, *, because: str, out_of_memory: bool) -> str:
    """One line: the signal, why it came, and what becomes of the request in hand.

    `because`: why the supervisor has sent SIGKILL, empty if it has not. `out_of_memory`: whether the kernel's
    out-of-memory killer has ended a process meanwhile.
    """
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if not because:
        meaning = _OUT_OF_MEMORY if number == signal.SIGKILL and out_of_memory else _MEANINGS.get(number, _FROM_OUTSIDE)
        because = f"({meaning})"
    return f"{key} was ended by {name} {because}; {_FATE}"
