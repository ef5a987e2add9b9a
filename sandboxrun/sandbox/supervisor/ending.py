"""The signals that end a run, and what they do until there is a worker to forward them to.

Every signal that would end this process by default ends the run in order instead: it leaves no user at Redis, `pid`, folder
or child behind. SIGKILL cannot be caught, and after a fault (SIGSEGV and its like) nothing can be trusted: the next start
removes what these leave. SIGPIPE and SIGXFSZ stay ignored, as Python has them: the write reports the error.

Imports `_signal`, because this is imported before everything else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub for it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

# By name, because another system may lack one: there the command line has to say that sandboxrun needs Linux.
_HARMLESS = "SIGCHLD SIGCONT SIGURG SIGWINCH SIGSTOP SIGTSTP SIGTTIN SIGTTOU"  # by default
_FAULTS = "SIGSEGV SIGBUS SIGFPE SIGILL SIGTRAP SIGSYS"
_NOT_OURS = {getattr(_signal, name, 0) for name in f"SIGKILL SIGPIPE SIGXFSZ {_HARMLESS} {_FAULTS}".split()}
ENDING = tuple(sorted(int(number) for number in _signal.valid_signals() if number not in _NOT_OURS))
# A shell starts background jobs with these ignored, and they have to end by them all the same.
_ALWAYS = {getattr(_signal, name, 0) for name in ("SIGINT", "SIGQUIT", "SIGTERM")}


class Signalled(BaseException):
    """A signal came before there was a worker. Not an Exception: nothing on the way may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


_received = 0
_deferred = False


def to_catch() -> list[int]:
    """The signals of ENDING, without those that were ignored when this process started, as by nohup."""
    return [n for n in ENDING if n in _ALWAYS or _signal.getsignal(n) != _signal.SIG_IGN]


def catch() -> None:
    """From here on such a signal raises Signalled, once. Call from the main thread."""
    for number in to_catch():
        _signal.signal(number, _receive)


def defer() -> None:
    """From here on it raises at the next `check` only, because what is made now must be finished."""
    global _deferred
    _deferred = True


def check() -> None:
    """Raise Signalled if a signal has come since `defer`."""
    if _received:
        raise Signalled(_received)


def received() -> int:
    """The signal that has come, or 0."""
    return _received


def _receive(number: int, _: FrameType | None) -> None:
    global _received
    if _received:
        return  # the first one is being handled
    _received = number
    if not _deferred:
        raise Signalled(number)
