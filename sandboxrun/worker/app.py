"""The object behind `sandboxrun.worker`: registered handlers, an encoder, and `run`."""

from __future__ import annotations

import atexit
import os
import sys

from sandboxrun.errors import ConfigError, SandboxrunError, StoreError
from sandboxrun.redis.replies import ReplyError
from sandboxrun.worker import process
from sandboxrun.worker.context import of_process, spec_of_script
from sandboxrun.worker.handlers import Handler, before_each, callables, name_of, shape_of
from sandboxrun.worker.output import keep_writable, say
from sandboxrun.worker.request import Encoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Concatenate, TypeVar, overload

    from sandboxrun.worker.base import Worker
    from sandboxrun.worker.context import Context
    from sandboxrun.worker.request import Request
    from sandboxrun.worker.services import Service
    from sandboxrun.worker.together import BatchHandler

    C = TypeVar("C")
    F = TypeVar("F", bound=Callable[Concatenate[Any, ...], Any])  # takes at least one argument
    E = TypeVar("E", bound=Callable[[Any], Any])
    B = TypeVar("B", bound=Callable[[list[Any]], Any])

CONCURRENCY = 100  # the default for async handlers


class App:
    """The handlers and services of one worker, the encoder of their results, and the worker's identity.

    Two Apps share nothing.
    """

    def __init__(self, context: Context | None = None) -> None:
        """`context`: by default that of this process, from its arguments and environment."""
        self.registered: dict[str | None, Handler] = {}  # by type of request; None: the worker's own type
        self.services: dict[str, Service] = {}  # by name
        self.served: dict[str, Service] = {}  # those of them that the hash names
        self.batched: BatchHandler | None = None  # of `batch`
        self.json = Encoder()  # writes results as JSON
        self._context = context
        self._running = self._ran = False
        self._pid = os.getpid()

    @property
    def context(self) -> Context:
        """Raises ConfigError if this process was not started as a worker."""
        if self._context is None:
            self._context = of_process()
        return self._context

    # --- decorators

    if TYPE_CHECKING:

        @overload
        def handler(self, function: F, /, *, payload: Any = None, timeout: float | None = None) -> F: ...
        @overload
        def handler(
            self, type_: str | None = None, /, *, payload: Any = None, timeout: float | None = None
        ) -> Callable[[F], F]: ...

    def handler(self, function_or_type: Any = None, /, *, payload: Any = None, timeout: float | None = None) -> Any:
        """Decorator: `@worker.handler` for requests of the worker's own type, `@worker.handler("type")` for another type.

        `payload`: a dataclass, TypedDict, pydantic model or other type that `request.data` is converted to; a parameter's
        annotation does the same. `timeout`: seconds after which the handler is interrupted, and the request answered 500;
        not for handlers that run in threads. The function itself is returned unchanged. Raises ConfigError.
        """
        if timeout is not None and timeout <= 0:
            type_text = f"{function_or_type!r}, " if isinstance(function_or_type, str) else ""
            raise ConfigError(
                f"the handler's timeout is {timeout}: expected seconds above 0",
                hint=f"@worker.handler({type_text}timeout=5)",
            )

        def decorate(function: Any) -> Any:
            if not callable(function):
                raise ConfigError(
                    f"the handler is {name_of(function)}, which cannot be called: expected a function",
                    hint=_handler_hint(),
                )
            self.registered[type_] = Handler(function, payload, timeout, self.json)
            return function

        if callable(function_or_type):
            type_: str | None = None
            return decorate(function_or_type)
        if function_or_type is not None and not isinstance(function_or_type, str):
            raise ConfigError(
                f"@worker.handler is given {name_of(function_or_type)}: expected a function, or the type of requests as text",
                hint=_handler_hint(),
            )
        type_ = function_or_type
        return decorate

    def batch(self, *, size: int = 1000, seconds: float = 0.05) -> Callable[[B], B]:
        """Decorator: `@worker.batch(size=1000)` for one function that is called with a list of requests.

        It gets up to `size` requests of the worker's own type, or what has come within `seconds` after the first. It
        returns a list with a result or an exception for each, or None: all are answered `{}`. If it raises
        worker.Unavailable, nothing is answered, and the same requests are tried again later. For any other exception
        the list is halved until a request fails by itself; that one is answered 500 and becomes a dead letter. An entry
        without a ref is given to it too, and is not answered; its `data` is parsed when it is read. Raises ConfigError.
        """

        def decorate(function: B) -> B:
            from sandboxrun.worker.together import BatchHandler

            if not callable(function):
                raise ConfigError(
                    f"the batch handler is {name_of(function)}, which cannot be called: expected a function",
                    hint=_batch_hint(),
                )
            self.batched = BatchHandler(function, size, seconds)
            return function

        return decorate

    def service(self, name: str, /) -> Callable[[type[C]], type[C]]:
        """Decorator: `@worker.service("price")` for a class whose methods can be called: `connect("price").quote(item="tea")`.

        Its functions without a leading underscore are its methods; `worker.run()` makes one object of it, without
        arguments. A method is given the request's data by the names of its parameters, converted to their types; a
        parameter of the type worker.Request is given the request. What is no dict is in the reply's field `result`.
        The field `services` of the hash says which of a script's services a worker serves. Raises ConfigError.
        """

        def decorate(kind: type[C]) -> type[C]:
            from sandboxrun.worker.services import Service

            if name in self.services:
                other = self.services[name].kind.__qualname__
                raise ConfigError(
                    f"the script has two services {name}, {other} and {name_of(kind)}: expected one class"
                )
            self.services[name] = Service(name, kind)
            return kind

        return decorate

    def encoder(self, function: E, /) -> E:
        """Decorator: `@worker.encoder` for the one function that converts objects without a form in JSON.

        It is called with such an object of a result or of `request.trace`. It returns anything that a result may contain,
        or raises TypeError with the reason. Raises ConfigError for a second encoder.
        """
        if not callable(function) or shape_of(function).is_async is not False:
            raise ConfigError(
                f"@worker.encoder is given {name_of(function)}: expected a function that is not async",
                hint=("@worker.encoder", "def encode(value):", "    return str(value)"),
            )
        if self.json.custom is not None:
            names = name_of(self.json.custom), name_of(function)
            raise ConfigError(
                f"the worker has two encoders, {names[0]} and {names[1]}: expected one function, which asks for the type",
                hint=_both_hint(*names),
            )
        self.json.custom = function
        return function

    # --- the loop

    def run(self, *, concurrency: int | None = None, key: Callable[[Request], Any] | None = None) -> None:
        """Handle requests until SIGTERM, a removed or changed `pid`, or `requestLimit`; then return.

        `concurrency`: how many requests are handled at once, 1 to 10,000. The default is 1, or 100 if a handler is async.
        With more than 1, handlers that are not async run in threads. `key`: a function of the request; requests with
        equal keys are handled one after another, in order.

        An error in the hash, the secrets or the call itself ends the process, with an `error:` line and the exit code of
        the error. It must be called in the main thread, outside of an event loop. In a child of multiprocessing, which
        imports the script again, it does nothing. Raises RuntimeError if it runs already.
        """
        if process.is_multiprocessing_child():
            return
        if self._running:
            raise RuntimeError("worker.run() runs already: one call serves all handlers")
        self._running = self._ran = True
        try:
            self._run(concurrency, key)
        except SandboxrunError as error:
            say(str(error), "error", error.hint)
            if not process.in_main_thread():
                process.leave(error.exit_code)  # sys.exit would end the thread alone
            sys.exit(error.exit_code)
        finally:
            self._running = False
            if self.served:
                from sandboxrun.protocol.services import here

                here.clear()

    def _run(self, concurrency: int | None, key: Callable[[Request], Any] | None) -> None:
        process.check_main_thread()
        keep_writable()
        try:
            self.context.secrets()  # now, not at the first request
            self._make(concurrency, key).run()
        except ReplyError as error:
            raise StoreError(f"Redis refuses a command of the worker: {error}") from error

    def _make(self, concurrency: int | None, key: Callable[[Request], Any] | None) -> Worker:
        """The worker for these handlers: one thread, unless a handler or `concurrency` needs more."""
        loop = self.context.loop()
        self._start_services(loop.services)
        handlers = self.handlers()
        if self.batched is not None:
            self._check_batch(concurrency, key)
        if not handlers:
            raise ConfigError("the worker has no handler that worker.run() could call", hint=_handler_hint())
        if concurrency is not None and not 1 <= concurrency <= 10_000:
            raise ConfigError(f"concurrency is {concurrency}: expected 1 to 10000", hint="worker.run(concurrency=100)")
        if spec := spec_of_script():
            from sandboxrun.worker.checked import bind

            bind(spec, self.context.type, handlers, self.served, self.services)
        if reseed := getattr(sys, "_sandboxrun_reseed", None):
            before_each(handlers, reseed)
        made: Worker
        if self.batched is not None:
            from sandboxrun.worker.batched import Batched

            made = Batched(self.context, loop, handlers, self.json, self.batched)
        elif not any(each.is_async or each.may_await for each in callables(handlers)) and (concurrency or 1) == 1:
            from sandboxrun.worker.serial import Serial

            made = Serial(self.context, loop, handlers, self.json)
        else:
            from sandboxrun.worker.tasks import Tasks

            made = Tasks(self.context, loop, handlers, self.json, concurrency or CONCURRENCY, key)
        if self.served:
            from sandboxrun.worker.direct import open_to_each_other

            open_to_each_other(self.served, handlers[self.context.type], self.context.caller, self.json, made)
        return made

    def _check_batch(self, concurrency: int | None, key: object) -> None:
        """Raise ConfigError for what a batch handler excludes."""
        if self.registered or self.services:
            raise ConfigError(
                "the worker has a batch handler, and another handler or a service: expected the batch handler alone",
                hint=_batch_hint(),
            )
        if concurrency not in (None, 1) or key is not None:
            raise ConfigError("a batch handler is called with one batch after another", hint="worker.run()")

    def handlers(self) -> dict[str, Handler]:
        """By the type of their requests."""
        own = self.context.type
        if self.batched is not None:
            return {own: self.batched}
        found = {type_ or own: handler for type_, handler in self.registered.items()}
        if self.served:
            from sandboxrun.worker.services import Routes

            found[own] = Routes(own, self.served, found.get(own))
        return found

    def _start_services(self, wanted: Sequence[str]) -> None:
        """Make the objects of those services that the hash names, by default all. Raises ConfigError."""
        if not (self.services or wanted):
            return
        from sandboxrun.worker.services import chosen

        self.served = chosen(self.services, wanted, self.context.key)
        for service in self.served.values():
            service.start(self.context.type, self.json)

    def say_never_run(self) -> None:
        """At exit: warn if the script registered handlers, ended without an error, and never called `run`."""
        started = len(sys.argv) == 2 and "REDIS_URL" in os.environ and os.getpid() == self._pid
        idle = (self.registered or self.services or self.batched) and not self._ran and not hasattr(sys, "last_type")
        if started and idle and not process.is_multiprocessing_child():
            say("the script has ended without worker.run(): no request was ever read", hint=("worker.run()",))


def _handler_hint() -> tuple[str, ...]:
    """The lines of a handler, to be written above worker.run()."""
    return ("@worker.handler", "def handle(request):", '    return {"data": request.data}')


def _batch_hint() -> tuple[str, ...]:
    return ("@worker.batch(size=1000)", "def handle(requests):", "    return [{} for request in requests]")


def _both_hint(first: str, second: str) -> tuple[str, ...]:
    """One encoder that calls both; nothing if a name is not that of a plain function."""
    if not (first.isidentifier() and second.isidentifier()):
        return ()
    return (
        "@worker.encoder",
        "def encode(value):",
        "    try:",
        f"        return {first}(value)",
        "    except TypeError:",
        f"        return {second}(value)",
    )


default = App()  # sandboxrun.worker.handler and the others are its methods
atexit.register(default.say_never_run)
