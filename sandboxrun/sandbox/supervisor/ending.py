"""The signals that end a run: which they are, and what one does until there is a worker to pass it on to.

Every signal that would end this process by default ends the run in order instead, so that no user at Redis, `pid`, folder or
child is left behind. Not SIGKILL, which nobody can catch, nor the faults (SIGSEGV and its like), after which nothing can be
trusted: the next start removes what those leave. SIGPIPE and SIGXFSZ stay ignored, as Python has them: the write reports it.

By `_signal`, because this comes before anything else is imported.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub for it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_DEFAULT_IS_HARMLESS = {
    _signal.SIGCHLD, _signal.SIGCONT, _signal.SIGURG, _signal.SIGWINCH,
    _signal.SIGSTOP, _signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU,
}  # fmt: skip
_FAULTS = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS}
_NOT_OURS = {_signal.SIGKILL, _signal.SIGPIPE, _signal.SIGXFSZ, *_DEFAULT_IS_HARMLESS, *_FAULTS}
ENDING = tuple(sorted(int(number) for number in _signal.valid_signals() if number not in _NOT_OURS))
# A shell starts background jobs with these ignored, and they have to end by them all the same.
_ALWAYS = {_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM}


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
    """The signals of ENDING but for those that whoever started this process ignores, as nohup does with SIGHUP."""
    return [n for n in ENDING if n in _ALWAYS or _signal.getsignal(n) != _signal.SIG_IGN]


def catch() -> None:
    """From here on such a signal raises Signalled, once. Call from the main thread."""
    for number in to_catch():
        _signal.signal(number, _receive)


def defer() -> None:
    """From here on it raises at the next `check` only: what is made now must not be cut off half made."""
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
        return  # what is being undone must not be cut off either
    _received = number
    if not _deferred:
        raise Signalled(number)
