"""Everything that can be raised, and errors whose own methods fail."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import json
import subprocess
import sys

from rows import ASYNC, BAD, FAILED, PLAIN, THREADS, add, raising, row

from sandboxrun import errors, worker
from sandboxrun.protocol import call

ARGS = {
    "UnicodeDecodeError": ("utf-8", b"\xff", 0, 1, "wrong"),
    "UnicodeEncodeError": ("utf-8", "\ud800", 0, 1, "wrong"),
    "UnicodeTranslateError": ("x", 0, 1, "wrong"),
    "ExceptionGroup": ("several", [ValueError("one"), TypeError("two")]),
    "BaseExceptionGroup": ("several", [KeyboardInterrupt(), SystemExit(3)]),
}
NAMES = {k for k, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)}
for name in sorted(
    NAMES - {"EnvironmentError", "IOError", "EncodingWarning", "PythonFinalizationError", "_IncompleteInputError"}
):
    kind = getattr(builtins, name)
    add(f"raise {name}", lambda request, k=kind, a=ARGS.get(name, ("why",)): raising(k(*a)))

for label, error in {
    "CancelledError": asyncio.CancelledError("stop"),
    "InvalidStateError": asyncio.InvalidStateError(),
    "futures CancelledError": concurrent.futures.CancelledError(),
    "JSONDecodeError": json.JSONDecodeError("bad", "{", 0),
    "CalledProcessError": subprocess.CalledProcessError(3, ["false"]),
    "ConnectionLost of ours": errors.ConnectionLost("Redis is away"),
    "StoreError of ours": errors.StoreError("no"),
    "ConfigError of ours": errors.ConfigError("no"),
    "client's BadRequest": call.BadRequest("of another worker"),
    "client's Expired": call.Expired("of another worker"),
    "HandlerTimeout by itself": worker.HandlerTimeout("slow"),
    "SystemExit None": SystemExit(),
    "SystemExit 0": SystemExit(0),
    "SystemExit text": SystemExit("configuration is missing"),
    "SystemExit object": SystemExit(object()),
    "nested group": BaseExceptionGroup("a", [ExceptionGroup("b", [ValueError(1)]), asyncio.CancelledError()]),
    "group of BadRequest": ExceptionGroup("a", [worker.BadRequest("no")]),
    "an empty message": ValueError(""),
    "a message of 10 MB": ValueError("x" * 10_000_000),
    "a message with surrogates": ValueError("\ud800\udfff"),
    "a message with NUL and controls": ValueError("\0\x1b[2J\x7f"),
    "a message of many arguments": ValueError(*range(10_000)),
    "a message of bytes": ValueError(b"\xff\xfe"),
    "a message with right-to-left marks": ValueError("\u202eabc\u2066"),
}.items():
    add(f"raise {label}", lambda request, e=error: raising(e))


def odd(label, base=Exception, code=FAILED, **members):
    kind = type("Odd", (base,), members)
    add(f"an error with {label}", lambda request: raising(kind("why")), code)


def fails(*_, **__):
    raise ValueError("in a method of the error's")


for inner in (
    ValueError,
    asyncio.CancelledError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    RecursionError,
    MemoryError,
    StopIteration,
):
    for base in (Exception, BaseException):
        odd(
            f"a __str__ that raises {inner.__name__}, a {base.__name__}",
            base,
            __str__=lambda self, i=inner: raising(i("x")),
        )


class Text(str):
    """A text that lies about itself."""

    __getitem__ = __len__ = encode = __str__ = __format__ = fails


class Meta(type):
    @property
    def __name__(cls):
        raise ValueError("no name")


odd("a __str__ that returns a number", __str__=lambda self: 3)
odd("a __str__ that returns None", __str__=lambda self: None)
odd("a __str__ that returns bytes", __str__=lambda self: b"x")
odd("a __str__ that returns an odd text", __str__=lambda self: Text("hello"))
odd("a __str__ that recurses", __str__=lambda self: str(self))
odd("a __repr__ that raises", __repr__=fails, __str__=fails)
odd("a __class__ that raises", __class__=property(fails))
odd("a __class__ of another kind", __class__=property(lambda self: worker.BadRequest))
odd("a __traceback__ that raises", __traceback__=property(fails))
odd("a __traceback__ that is None", __traceback__=property(lambda self: None))
odd("a __cause__ that raises", __cause__=property(fails))
odd("a __context__ that raises", __context__=property(fails))
odd("a __cause__ of another kind", __cause__=property(lambda self: 3))
odd("notes that are no list", __notes__=3)
odd("notes that raise", __notes__=property(fails))
odd("a __getattribute__ that raises", __getattribute__=fails)
odd("a __del__ that raises SystemExit", __eq__=fails, __hash__=fails)
odd("a __str__ that raises, refused", worker.BadRequest, BAD, __str__=fails)
odd("a __str__ that prints and exits", __str__=lambda self: sys.exit("in __str__"))
odd("args that are no tuple", args=property(fails))
add("an error of a class without a name", lambda request: raising(Meta("Nameless", (Exception,), {})("why")))

add("refuse", lambda request: raising(worker.BadRequest("no such user")), BAD, says="no such user")
add("refuse without a word", lambda request: raising(worker.BadRequest()), BAD)
add("refuse with surrogates", lambda request: raising(worker.BadRequest("\ud800")), BAD)
add("refuse with 10 MB", lambda request: raising(worker.BadRequest("x" * 10_000_000)), BAD)
add("refuse by a subclass", lambda request: raising(type("Mine", (worker.BadRequest,), {})("no")), BAD)


@row()
def circular_context(request):
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    raise one


@row()
def circular_cause(request):
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    raise one


@row()
def its_own_cause(request):
    error = ValueError("mine")
    error.__cause__ = error
    raise error


@row()
def three_thousand_causes(request):
    error = None
    for n in range(3000):
        following = ValueError(n)
        following.__cause__, error = error, following
    raise error


@row()
def a_deep_group(request):
    error = ValueError("innermost")
    for n in range(500):
        error = ExceptionGroup(str(n), [error])
    raise error


@row()
def a_wide_group(request):
    raise ExceptionGroup("wide", [ValueError(n) for n in range(2000)])


@row()
def a_hundred_notes(request):
    error = ValueError("noted")
    for n in range(100):
        error.add_note(f"note {n} \ud800")
    raise error


@row()
def recursion(request):
    def down():
        return down()

    return down()


@row()
def recursion_through_repr(request):
    items = []
    for _ in range(100_000):
        items = [items]
    return {"shown": repr(items)}


@row()
def recursion_while_it_is_handled(request):
    def down():
        return down()

    try:
        down()
    except RecursionError:
        down()


@row()
def memory(request):
    return {"size": len(bytearray(1 << 40))}


@row()
def memory_bit_by_bit(request):
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


@row()
def memory_of_small_things(request):
    kept = [bytearray(16 << 20) for _ in range(8)]
    while True:
        kept.append([None] * 1_000_000)


@row(says="the handler raised SystemExit: 7")
def sys_exit(request):
    sys.exit(7)


@row()
def exit_of_the_builtins(request):
    exit(3)


@row()
def an_error_of_a_generator_that_is_closed(request):
    def generate():
        try:
            yield 1
        finally:
            raise ValueError("while closing")

    generator = generate()
    next(generator)
    generator.close()


@row()
def a_generator_throws_GeneratorExit(request):
    def generate():
        raise GeneratorExit
        yield

    next(generate())


@row(200)
def return_in_finally(request):
    try:
        raise ValueError("lost")
    finally:
        return {"ok": True}


@row()
def an_error_in_finally(request):
    try:
        raise KeyboardInterrupt
    finally:
        raise ValueError("instead")


@row()
def raise_nothing(request):
    raise


@row()
def raise_no_exception(request):
    raise 3


@row()
def a_shared_error_again_and_again(request):
    raise SHARED


SHARED = ValueError("one object, raised by each request")
add("the same object once more", a_shared_error_again_and_again)
add("StopIteration of next", lambda request: next(iter(())))
add("StopAsyncIteration", lambda request: raising(StopAsyncIteration), modes=(PLAIN, THREADS, ASYNC))
add("division", lambda request: 1 / 0, says="division by zero")
add("a name that is not there", lambda request: missing)  # noqa: F821
add("an attribute that is not there", lambda request: request.missing)
add("an assertion", lambda request: raising(AssertionError("no")), says="no")
add("an import that is not there", lambda request: __import__("no_such_module_anywhere"))
add("a file that is not granted", lambda request: open("/etc/shadow"), says="Permission denied")
add("an int of 5000 digits as text", lambda request: str(10**5000))
