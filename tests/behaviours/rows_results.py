"""All kinds of results, and of values for traces and progress."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid

from rows import ANSWERED, FAILED, OK, add, raising, row

CIRCLE = {}
CIRCLE["again"] = CIRCLE
DEEP = []
for _ in range(100_000):
    DEEP = [DEEP]


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: object
    y: object = None


class Odd:
    """Raises if it is used in the named way."""

    def __init__(self, *names, error=ValueError):
        self.names, self.error = names, error

    def __repr__(self):
        raise self.error("in __repr__")

    __str__ = __repr__


class Keys(collections.abc.Mapping):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, key):
        raise self.error("in __getitem__")

    def __iter__(self):
        raise self.error("in __iter__")

    def __len__(self):
        raise self.error("in __len__")


class HalfWay(Keys):
    def __iter__(self):
        return iter("ab")

    def __getitem__(self, key):
        if key == "b":
            raise self.error("in the middle")
        return key

    def __len__(self):
        return 2


class Model:
    def __init__(self, error):
        self.error = error

    def model_dump(self, **_):
        raise self.error("in model_dump")


class NoTruth(dict):
    def __bool__(self):
        raise ValueError("neither")


class Items(dict):
    def items(self):
        raise ValueError("in items")

    keys = values = __iter__ = __len__ = items


class Whole:
    """Claims to be of another class."""

    @property
    def __class__(self):
        raise ValueError("no class")


class Attributes:
    def __getattr__(self, name):
        raise ValueError(name)


GOOD = {
    "None": None,
    "an empty dict": {},
    "text": {"text": "hello"},
    "text of every plane": {"text": "é\u4e2d\U0001f600\u202e\u2028"},
    "NUL and controls": {"text": "\0\x1b\x7f\x85"},
    "numbers": {"n": [0, -1, 1.5, 1e308, True]},
    "an int of 4000 digits": {"n": 10**4000},
    "the names of the envelope": {"ref": "x", "code": 1, "source": "y", "time": "z", "err": {"message": "no error"}},
    "a megabyte": {"text": "x" * 1_000_000},
    "ten thousand fields": {str(n): n for n in range(10_000)},
    "an OrderedDict": collections.OrderedDict(a=1),
    "a defaultdict": collections.defaultdict(list, a=[1]),
    "a Counter": collections.Counter("hello"),
    "a ChainMap": collections.ChainMap({"a": 1}, {"b": 2}),
    "a mappingproxy": types.MappingProxyType({"a": 1}),
    "a dataclass": Point(1, 2),
    "nested lists": {"n": [[[[[1]]]]]},
    "a percent sign and braces": {"text": "%s %d {} %%"},
}
for label, value in GOOD.items():
    add(f"return {label}", lambda request, v=value: v, OK)

USUAL = {
    "a text": "hello", "a list": [1, 2], "a number": 3, "True": True, "bytes": b"\xff", "a tuple": (1,), "a set": {1},
    "a datetime": {"at": datetime.datetime(2026, 1, 1)}, "a date": {"at": datetime.date(2026, 1, 1)},
    "a timedelta": {"at": datetime.timedelta(1)}, "a Decimal": {"n": decimal.Decimal("1.5")},
    "a Fraction": {"n": fractions.Fraction(1, 3)},
    "a UUID": {"id": uuid.UUID(int=1)}, "an Enum": {"c": Colour.RED}, "a Path": {"p": pathlib.Path("/x")},
    "bytes inside": {"b": b"\xff"}, "a bytearray": {"b": bytearray(2)}, "a memoryview": {"b": memoryview(b"x")},
    "an array": {"a": array.array("i", [1])}, "a set inside": {"s": {1, 2}}, "a frozenset": {"s": frozenset("a")},
    "a deque": {"d": collections.deque([1])}, "a range": {"r": range(3)},
    "keys of numbers": {1: 2}, "keys of None": {None: 1}, "keys of bool": {True: 1}, "keys of float": {1.5: 1},
    "keys of bytes": {b"a": 1},
    "keys that cannot be sorted": {"a": 1, 2: 2, None: 3},
    "a surrogate": {"text": "\ud800"}, "a key with a surrogate": {"\udfff": 1}, "a surrogate pair in halves": {"t": "\ud83d\ude00"},
    "a nested dataclass": {"p": Point(Point(1))},
    "a namedtuple": collections.namedtuple("N", "a b")(1, 2),
}  # fmt: skip
for label, value in USUAL.items():
    add(f"return {label}", lambda request, v=value: v, OK)

WRONG = {
    "NaN": {"n": float("nan")}, "Infinity": {"n": float("inf")}, "nested NaN": {"n": [{"m": -float("inf")}]},
    "a Decimal NaN": {"n": decimal.Decimal("NaN")}, "a complex": {"c": 1j}, "a key of NaN": {float("nan"): 1}, "keys of tuples": {(1, 2): 3},
    "a dataclass with a lock": Point(sys.stdout), "a class": Point, "a SimpleNamespace": types.SimpleNamespace(a=1),
    "an exception": {"e": ValueError("x")}, "an error itself": ValueError("x"), "Ellipsis": {"e": ...}, "NotImplemented": NotImplemented,
    "a circle": CIRCLE, "100,000 levels": {"d": DEEP}, "an int of 5000 digits": {"n": 10**5000}, "an object": {"o": object()},
    "an object itself": object(), "a module": {"m": sys}, "a function": {"f": len}, "a generator": (n for n in ()),
    "an iterator": {"i": iter([])}, "an open file": {"f": sys.stdin}, "an object that cannot be shown": {"o": Odd()},
    "an object whose __repr__ exits": {"o": Odd(error=SystemExit)}, "a class of Odd": Odd(),
    "more than a reply may have": {"text": "x" * 9_000_000}, "an object without a class": Whole(),
    "an object without attributes": Attributes(), "a type that is a mapping": dict, "a lambda": lambda: None,
}  # fmt: skip
for label, value in WRONG.items():
    add(f"return {label}", lambda request, v=value: v, FAILED)
add("return a dict without a truth", lambda request: NoTruth(a=1), ANSWERED)
add("return a dict whose items raise", lambda request: Items(a=1), ANSWERED)

for error in (
    ValueError,
    KeyError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    MemoryError,
    RecursionError,
):
    add(f"return a Mapping that raises {error.__name__}", lambda request, e=error: Keys(e))
    add(f"return a Mapping that raises {error.__name__} half way", lambda request, e=error: HalfWay(e))
    add(f"return a model that raises {error.__name__}", lambda request, e=error: Model(e))


@row()
def return_an_endless_Mapping(request):
    class Endless(HalfWay):
        def __iter__(self):
            n = 0
            while True:
                yield f"{'x' * 100_000}{(n := n + 1)}"

        def __getitem__(self, key):
            return key

    return Endless(ValueError)


@row(ANSWERED)
def return_a_Mapping_that_reports_progress(request):
    class Telling(HalfWay):
        def __getitem__(self, key):
            request.progress(key)
            return key

    return Telling(ValueError)


@row(ANSWERED)
def return_a_dict_that_grows_meanwhile(request):
    class Growing(dict):
        def __len__(self):
            self[str(id(object()))] = 1
            return 1

    return Growing(a=1)


NOTES = {
    "a circle": (CIRCLE, FAILED), "100,000 levels": (DEEP, FAILED), "an int of 5000 digits": (10**5000, FAILED),
    "a surrogate": ("\ud800", OK), "keys of tuples": ({(1, 2): 3}, FAILED), "NaN": (float("nan"), FAILED),
    "an object that cannot be shown": (Odd(), FAILED), "an object whose text exits": (Odd(error=SystemExit), FAILED),
    "an object": (object(), FAILED), "bytes": (b"\xff", OK), "a datetime": (datetime.datetime(2026, 1, 1), OK),
    "text": ("half", OK), "an empty text": ("", OK), "None": (None, OK), "a megabyte": ("x" * 1_000_000, OK),
    "controls": ("\0\n\x1b", OK), "a set": ({1}, OK), "a dict": ({"a": [1]}, OK), "an exception": (ValueError("x"), FAILED),
}  # fmt: skip
for label, (value, code) in NOTES.items():
    add(f"trace {label}", lambda request, v=value: request.trace(field=v), code)
    add(f"progress {label}", lambda request, v=value: request.progress(v), code)
add("trace a name with a surrogate", lambda request: request.trace(**{"\ud800": 1}), OK)
add("trace an empty name", lambda request: request.trace(**{"": 1}), OK)
add("trace a name that is no text", lambda request: request.trace(**{1: 2}))
add("trace the worker's own field", lambda request: request.trace(bTrace="mine"), OK)
add("trace ten thousand fields", lambda request: request.trace(**{f"f{n}": n for n in range(10_000)}), OK)
add("trace without fields", lambda request: request.trace(), OK)
add("progress 300 times", lambda request: [request.progress(n) for n in range(300)] and None, OK)


@row()
def trace_a_circle_and_fail(request):
    request.trace(circle=CIRCLE)
    raise ValueError("why")


@row()
def trace_a_circle_and_refuse(request):
    from sandboxrun import worker

    request.trace(circle=CIRCLE)
    raise worker.BadRequest("why")


@row(OK)
def change_the_request(request):
    request.ref, request.data, request.type, request.xid = "other", None, None, None


@row(OK)
def delete_what_the_request_has(request):
    for name in ("data", "deadline", "deliveries", "xid"):
        delattr(request, name)


@row()
def the_notes_are_no_dict(request):
    request._noted = 3


add("an error after progress", lambda request: (request.progress("half"), raising(ValueError("why"))))
