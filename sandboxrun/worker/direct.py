"""Calls of a service by another one of the same process: as over Redis, without Redis.

Arguments and result become JSON and are read again, by the functions that write and read them for Redis, so that both ways
give the same values and the same errors. A callee goes on when its caller's time is over, as it would in another process.
"""

from __future__ import annotations

import os
import time

from sandboxrun.plainjson import encoder as json_encoder
from sandboxrun.protocol import (
    FAILED,
    OK,
    PAYLOAD_MAX_BYTES,
    RESULT_MAX_BYTES,
    BadRequest,
    Expired,
    HandlerTimeout,
    code_of,
)
from sandboxrun.protocol import call as client
from sandboxrun.protocol.call import CallError, CallTimeout, error_of
from sandboxrun.protocol.calling import Calling, current
from sandboxrun.protocol.reply import decoded, error_text, failure, message_of
from sandboxrun.protocol.request import check_method, decoded_data, encode, now
from sandboxrun.protocol.services import here, value_of
from sandboxrun.worker.answer import ResultError, show
from sandboxrun.worker.process import leave_child
from sandboxrun.worker.request import Request
from sandboxrun.worker.services import Routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import ThreadPoolExecutor
    from typing import Any

    from sandboxrun.protocol import UnknownMethod
    from sandboxrun.protocol.calling import Caller
    from sandboxrun.worker.base import Worker
    from sandboxrun.worker.effects import Effects
    from sandboxrun.worker.handlers import Handler
    from sandboxrun.worker.request import Encoder
    from sandboxrun.worker.services import Method, Service

REF_CHARS = 40  # of a call over Redis
THREADS_MOST = 500  # for methods that are not async and that coroutines call; they may wait for each other


class Process:
    """What the services of one process share."""

    def __init__(self, caller: Caller, encoder: Encoder, loop: Callable[[], AbstractEventLoop | None]) -> None:
        """`loop`: the event loop of the async handlers, if the worker has one."""
        self.caller, self.encoder, self.loop = caller, encoder, loop
        self.tasks: set[Task[Any]] = set()  # calls of async methods, which asyncio itself would forget
        self._threads: ThreadPoolExecutor | None = None

    @property
    def threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(THREADS_MOST, "service")
        return self._threads


class Inner(Request):
    """The request of a direct call. What it notes, tells and emits is of the current request, if there is one."""

    __slots__ = ("_emitted", "_outer")

    def __init__(self, calling: Calling, type_: str, data: Any, raw: Mapping[bytes, bytes], encoder: Encoder) -> None:
        outer: Any = calling.request
        xid, deliveries = ("", 1) if outer is None else (outer.xid, outer.deliveries)
        super().__init__(xid, calling.ref, type_, data, raw, calling.deadline, deliveries, encoder)
        self._calling, self._outer = calling, outer
        self._emitted: list[str] = []  # refs

    def trace(self, **fields: Any) -> None:
        super().trace(**fields)  # raises for what is no JSON
        if self._outer is not None:
            self._outer.trace(**fields)

    def progress(self, value: Any) -> None:
        if self._outer is not None:
            self._outer.progress(value)

    def emit(self, type: str, data: Any = None, *, method: str | None = None, timeout: float | None = None) -> str:
        ref = super().emit(type, data, method=method, timeout=timeout)
        self._emitted.append(ref)
        return ref

    def _joining(self) -> Effects:
        if self._outer is None:
            raise RuntimeError(
                "the method was called outside of a handler, so there is no reply that anything could join"
            )
        found: Effects = self._outer._joining()
        return found

    def withdraw(self) -> None:
        """Take back what it has emitted, because its method has failed: over Redis nothing would have been sent."""
        if not self._emitted:
            return
        try:
            self._joining().withdraw(self._emitted)
        except RuntimeError:  # the caller did not wait for it, and its reply was made
            pass


class _Call:
    """One call: its method by name and, if there is such a one, itself; its arguments as text; what its own calls inherit."""

    __slots__ = ("calling", "method", "name", "request", "text", "timeout")

    def __init__(self, name: str, method: Method | None, text: str, calling: Calling, timeout: float | None) -> None:
        self.name, self.method, self.text, self.calling, self.timeout = name, method, text, calling, timeout
        self.request: Inner | None = None  # if the method asks for it


class Direct:
    """One service of this process, for the others: protocol.services.Local."""

    def __init__(
        self, name: str, methods: Mapping[str, Method], unknown: Callable[[str], UnknownMethod], process: Process
    ) -> None:
        """`methods`: by the names that a request may have. `unknown`: the error for another name."""
        self._name, self._methods, self._unknown, self._process = name, methods, unknown, process

    def call(self, method: str, named: dict[str, Any], timeout: float | None) -> Any:
        """What the method returns. Raises CallError; TypeError or ValueError for arguments that are not JSON."""
        call, pid = self._begin(method, named, timeout), os.getpid()
        token = current.set(call.calling)
        try:
            result = self._run(call)
            done = type(result) is dict or not hasattr(result, "__await__")
            outcome: Any = self._outcome(call, result) if done else self._elsewhere(call, result)
        except HandlerTimeout:  # of the handler that calls
            raise
        except BaseException as error:
            outcome = self._failed(call, error)
        finally:
            current.reset(token)
        if os.getpid() != pid:  # the method has forked, and this is the child
            leave_child(None)
        return self._ended(call, outcome)

    async def call_async(self, method: str, named: dict[str, Any], timeout: float | None) -> Any:
        """As `call`, and never blocks the event loop."""
        import asyncio

        call = self._begin(method, named, timeout)
        process, loop = self._process, asyncio.get_running_loop()
        own = process.loop() or loop
        if own is loop:
            work: Any = loop.create_task(self._task(call))
            process.tasks.add(work)
            work.add_done_callback(process.tasks.discard)
        else:  # a loop of the script's
            work = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._task(call), own))
        done, _ = await asyncio.wait((work,), timeout=self._left(call))
        return self._ended(call, work.result() if done else None)

    # --- before

    def _begin(self, method: str, named: dict[str, Any], timeout: float | None) -> _Call:
        """The call, checked as a client checks it. Raises BadRequest of a client, ValueError, TypeError."""
        found = self._methods.get(method)
        if found is None:
            check_method(method)
        text = _encoded(named)
        calling = current.get()
        if calling is None:  # a thread of the script's
            caller = self._process.caller
            inner = Calling(self._name, None, (self._name,), "", "", caller.nonce, caller)
        else:
            inner = calling.inner(self._name)
        at = time.time()
        if timeout is not None and (inner.deadline is None or inner.deadline > at + timeout):
            inner.deadline = at + timeout
        elif inner.deadline is not None and inner.deadline <= at:
            raise client.Expired(f"{self._name} was not called: the deadline of the current request has passed")
        return _Call(method, found, text, inner, None if inner.deadline is None else inner.deadline - at)

    def _run(self, call: _Call) -> Any:
        """What the method returns, or an awaitable of it. Raises what a worker does for such a request."""
        text, calling = call.text, call.calling
        if len(text) > PAYLOAD_MAX_BYTES - 4096 and self._size(call) > PAYLOAD_MAX_BYTES:
            raise BadRequest(f"the request has more than {PAYLOAD_MAX_BYTES} bytes")
        data = decoded_data(text)
        if calling.deadline is not None and calling.deadline <= time.time():
            raise Expired("the request's deadline had passed before it was begun")
        method = call.method
        if method is None:
            raise self._unknown(call.name)
        if method.checked is not None:
            method.checked.take(data, text)
        if not method.wants_request:
            return method.run(data, None)
        raw = {name.encode(): value.encode() for name, value in self._fields(call).items()}
        call.request = Inner(calling, self._name, data, raw, self._process.encoder)
        return method.run(data, call.request)

    def _fields(self, call: _Call) -> dict[str, str]:
        """The fields of the entry that it would be in Redis."""
        calling = call.calling
        made = {"ref": calling.ref, "type": self._name, "data": call.text, "time": now(), "method": call.name}
        if calling.deadline is not None:
            made["deadline"] = str(int(calling.deadline * 1000))
        if calling.traceparent:
            made["traceparent"] = calling.traceparent
        if len(calling.path) > 1:
            made["path"] = ",".join(calling.path[:-1])
        return made

    def _size(self, call: _Call) -> int:
        """In bytes, of that entry with a ref of its own."""
        return sum([len(name) + len(value) for name, value in {**self._fields(call), "ref": "0" * REF_CHARS}.items()])

    # --- methods that are async, or called by coroutines

    def _elsewhere(self, call: _Call, work: Awaitable[Any]) -> Any:
        """The outcome of an async method, which this thread waits for; None if the time is over."""
        import asyncio
        import concurrent.futures

        loop = self._process.loop()
        if loop is None or asyncio._get_running_loop() is loop:
            work.close()  # type: ignore[attr-defined]
            raise RuntimeError(f"{self._name}.{call.name} is async, and its event loop cannot wait for it")
        future = asyncio.run_coroutine_threadsafe(self._awaited(call, work), loop)
        try:
            return future.result(self._left(call))
        except concurrent.futures.TimeoutError:
            return None

    async def _task(self, call: _Call) -> Any:
        """The outcome."""
        import asyncio
        import contextvars

        current.set(call.calling)
        try:
            if call.method is None or call.method.is_async:
                return await self._awaited(call, self._run(call))
            run = contextvars.copy_context().run
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(self._process.threads, run, self._threaded, call)
        except BaseException as error:
            return self._failed(call, error)
        return await self._awaited(call, result) if hasattr(result, "__await__") else result

    def _threaded(self, call: _Call) -> Any:
        """The outcome, or an awaitable of the result."""
        try:
            result = self._run(call)
            return result if hasattr(result, "__await__") else self._outcome(call, result)
        except BaseException as error:
            return self._failed(call, error)

    async def _awaited(self, call: _Call, work: Awaitable[Any]) -> Any:
        current.set(call.calling)
        try:
            return self._outcome(call, await work)
        except BaseException as error:
            return self._failed(call, error)

    # --- after

    def _outcome(self, call: _Call, result: Any) -> str:
        """The reply's JSON, checked as a worker does. Raises ResultError."""
        write = self._process.encoder.reply
        try:
            if type(result) is not dict:
                result = self._process.encoder.forms.fields(result)
            body = write("", self._name, OK, result, "")
        except HandlerTimeout:  # of the handler that calls
            raise
        except BaseException as error:
            raise ResultError(f"the handler's result is not JSON: {message_of(error)}") from error
        if len(body) > RESULT_MAX_BYTES - 64:  # with a ref and a time
            body = write("0" * REF_CHARS, self._name, OK, result, now())
            if len(body) > RESULT_MAX_BYTES:
                raise ResultError(f"the reply has {len(body)} bytes: at most {RESULT_MAX_BYTES} are sent")
        if call.method is not None and call.method.checked is not None:
            call.method.checked.give(body)
        return body

    def _failed(self, call: _Call, error: BaseException) -> CallError:
        """The error that a client raises for this one of the worker's."""
        code = code_of(type(error))
        if call.request is not None:
            call.request.withdraw()
        if code == FAILED:
            show(error, f"the call of {self._name}.{call.name}")
        raw = {b"type": self._name.encode(), b"data": call.text.encode(), b"method": call.name.encode()}
        fields = failure(error, raw, with_payload=code == FAILED)
        text = f"{self._name} replied {code}: {error_text(fields)}"
        return error_of(code)(text, {**fields, "source": self._name, "code": code})

    def _left(self, call: _Call) -> float | None:
        deadline = call.calling.deadline
        return None if deadline is None else max(0.0, deadline - time.time())

    def _ended(self, call: _Call, outcome: Any) -> Any:
        """The result, of the outcome: the reply's JSON, an error, or None if there is none in time."""
        deadline = call.calling.deadline
        if deadline is not None and time.time() > deadline and not isinstance(outcome, Expired):
            outcome = None
        if outcome is None:
            within = "" if call.timeout is None else f" within {call.timeout:g} s"
            raise CallTimeout(f"no reply of {self._name}{within}")
        if isinstance(outcome, CallError):
            raise outcome
        return value_of(decoded(outcome))  # type: ignore[arg-type]  # it is an object


def open_to_each_other(
    served: Mapping[str, Service], routes: Handler, caller: Caller, encoder: Encoder, worker: Worker
) -> None:
    """Have `connect` call these services directly, also by the worker's own type."""
    assert isinstance(routes, Routes)
    process = Process(caller, encoder, lambda: worker.event_loop)
    here[caller.type] = Direct(caller.type, routes.methods, routes.unknown, process)
    here.update({name: Direct(name, service.by_name, service.unknown, process) for name, service in served.items()})


def _encoded(named: dict[str, Any]) -> str:
    """As `encode`, which takes longer because it looks for cycles. Raises the same errors."""
    try:
        return "".join(_chunks(named, 0))
    except HandlerTimeout:  # of the handler that calls
        raise
    except Exception:
        return encode(named)


def _refuse(value: Any) -> Any:
    raise TypeError


_chunks = json_encoder(_refuse, spaces=True)
