"""The answers to a batch: one call for many requests, the halving that finds the one that fails, and waiting for others.

Imported by the first `@worker.batch`.
"""

from __future__ import annotations

from sandboxrun.errors import ConfigError
from sandboxrun.protocol import FAILED, BadRequest, Expired, Unavailable, code_of
from sandboxrun.protocol.reply import message_of
from sandboxrun.protocol.request import decoded_data, now
from sandboxrun.worker.answer import Answers, ResultError, check_deadline, show
from sandboxrun.worker.handlers import Handler, name_of, shape_of
from sandboxrun.worker.process import leave_child
from sandboxrun.worker.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from sandboxrun.worker.rendering import Entry

    Given = tuple[Entry, Request]

SIZE_MOST = 10_000
SECONDS_MOST = 60.0


class Item(Request):
    """An entry that nobody waits for, such as an event: `ref` is "", and `data` is parsed when it is read.

    `data` raises BadRequest if the entry is malformed.
    """

    __slots__ = ("_data", "_entry", "_parsed")

    # Of the class, because an object is made for each of very many entries.
    ref = ""
    deadline = _encoder = _tell = _caller = None

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._noted = self._calling = None
        self._effects = False
        self._parsed = False

    @property
    def _raw(self) -> Mapping[bytes, bytes]:  # type: ignore[override]
        return self._entry.raw

    raw = _raw

    @property
    def xid(self) -> str:  # type: ignore[override]  # nobody sets it
        return self._entry.xid.decode()

    @property
    def type(self) -> str:  # type: ignore[override]
        return self._entry.raw.get(b"type", b"").decode("utf-8", "replace")

    @property
    def deliveries(self) -> int:  # type: ignore[override]
        return self._entry.deliveries

    @property
    def data(self) -> Any:
        if not self._parsed:
            self._data = _data(self._raw)
            self._parsed = True
        return self._data


def _data(raw: Mapping[bytes, bytes]) -> Any:
    """As of a request: the JSON of `data`, or all fields as text. Raises BadRequest."""
    text = raw.get(b"data")
    try:
        if text is None:
            return {name.decode(): value.decode() for name, value in raw.items()}
        return decoded_data(text.decode())
    except UnicodeDecodeError:
        raise BadRequest("the entry is not UTF-8 text") from None


class BatchHandler(Handler):
    """The function of `@worker.batch`."""

    def __init__(self, function: Callable[[list[Request]], Any], size: int, seconds: float) -> None:
        """Raises ConfigError."""
        shape = shape_of(function)
        if shape.is_async is not False or shape.is_generator:
            raise ConfigError(
                f"the batch handler {shape.name} is async or a generator: expected a function that returns a list or None"
            )
        if not 1 <= size <= SIZE_MOST:
            raise ConfigError(
                f"@worker.batch has size {size}: expected 1 to {SIZE_MOST}", hint="@worker.batch(size=1000)"
            )
        if not 0 <= seconds <= SECONDS_MOST:
            raise ConfigError(
                f"@worker.batch has seconds {seconds}: expected 0 to {SECONDS_MOST:g}",
                hint="@worker.batch(seconds=0.05)",
            )
        super().__init__(function, None, None)
        self.size, self.seconds = size, seconds

    def call(self, requests: Any) -> Any:
        """What the function returns. May raise anything."""
        return self.function(requests)


class Together:
    """Answers batches. `wait` is called with what is unavailable, and whether it is worth another try is its result."""

    def __init__(self, answers: Answers, handler: BatchHandler, wait: Callable[[Unavailable], bool]) -> None:
        self._answers, self._handler, self._wait = answers, handler, wait

    def serve(self, entries: Sequence[Entry]) -> None:
        """Have each entry answered; those that are not when `wait` gave up are as they were.

        A part that fails is halved until one request fails by itself, so the handler may be called again with requests
        that it has been given before.
        """
        received = now()
        parts = [[given for entry in entries if (given := self._parse(entry, received)) is not None]]
        while parts:
            part = parts.pop()
            if not part:
                continue
            try:
                results = self._call(part)
            except Unavailable as error:
                if not self._wait(error):
                    return
                parts.append([given for given in part if self._is_in_time(*given, received)])
            except BaseException as error:
                self._check_child(error)
                if len(part) == 1:
                    self._refuse(*part[0], received, error)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]  # the older half first
            else:
                self._finish(part, results, received)

    def _call(self, part: list[Given]) -> Any:
        for entry, _ in part:
            entry.begun = True
        try:
            return self._handler.call([request for _, request in part])
        except Unavailable:
            for entry, _ in part:
                entry.begun = False
            raise

    def _parse(self, entry: Entry, received: str) -> Given | None:
        """The request of an entry, or None if it is answered already: it is malformed, or its deadline has passed."""
        if self._answers.is_item(entry):
            entry.silent = True
            return entry, Item(entry)
        try:
            return entry, self._answers.parse(entry)[1]
        except BaseException as error:
            self._answers.fail(entry, received, None, error)
            return None

    def _is_in_time(self, entry: Entry, request: Request, received: str) -> bool:
        """False if the deadline has passed while the batch has waited: it is answered then."""
        try:
            check_deadline(request)
        except Expired as error:
            self._answers.fail(entry, received, request, error)
            return False
        return True

    def _finish(self, part: list[Given], results: Any, received: str) -> None:
        """One result for each request, or None for all of them."""
        self._check_child(None)
        if results is None:
            for entry, request in part:
                if entry.silent:
                    entry.answered = True  # it has no commands
                else:
                    self._give(entry, request, received, None)
            return
        if not isinstance(results, list | tuple) or len(results) != len(part):
            error = ResultError(_mismatch(self._handler, results, len(part)))
            show(error, f"a batch of {len(part)} requests")
            for entry, request in part:
                self._refuse(entry, request, received, error)
            return
        for (entry, request), result in zip(part, results, strict=True):
            self._give(entry, request, received, result)

    def _give(self, entry: Entry, request: Request, received: str, result: Any) -> None:
        if isinstance(result, BaseException):
            self._refuse(entry, request, received, result)
        elif entry.silent:
            entry.answered = True
        else:
            try:
                self._answers.finish(entry, received, self._handler, request, result)
            except BaseException as error:
                self._refuse(entry, request, received, error)

    def _refuse(self, entry: Entry, request: Request, received: str, error: BaseException) -> None:
        """Answer a request that has failed. One that the handler could not do anything with is kept as a dead letter."""
        self._answers.fail(entry, received, request, error)
        if not entry.silent and code_of(type(error)) == FAILED:
            self._answers.bury(entry, message_of(error))

    def _check_child(self, error: BaseException | None) -> None:
        if self._answers.is_child:
            leave_child(error)


def _mismatch(handler: BatchHandler, results: Any, count: int) -> str:
    found = f"{len(results)} results" if isinstance(results, list | tuple) else f"an object of {type(results).__name__}"
    return f"{name_of(handler.function)} returned {found} for {count} requests: expected a list with one each, or None"
