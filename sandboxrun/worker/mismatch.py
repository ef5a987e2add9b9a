"""Errors of a payload that does not fit its type: the field, the expected form and the value. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sandboxrun.protocol import HandlerTimeout

DEPTH_MAX = 100  # nested objects and lists in a payload with a type
PATH_MAX_CHARS = 200
NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


class Unusable(Exception):
    """A type that JSON cannot be converted to. The message names the type and the field."""


class Mismatch(Exception):
    """JSON that does not fit the type. The message names the field."""

    def __init__(self, text: str, expected: str = "", found: str = "") -> None:
        super().__init__(text)
        self.text, self.expected, self.found = text, expected, found
        self.path: list[str | int] = []  # steps to the value, innermost first

    def copy(self) -> Mismatch:
        copied = Mismatch(self.text, self.expected, self.found)
        copied.path = self.path[:]
        return copied

    def __str__(self) -> str:
        path = ""
        for step in reversed(self.path):
            path += f"[{step}]" if isinstance(step, int) else f".{step[:80]}" if path else step[:80]
            if len(path) > PATH_MAX_CHARS:
                path = path[:PATH_MAX_CHARS] + "…"
                break
        return (f"field {path}" if path else "it") + self.text


def at(error: Exception, step: str | int | None) -> Exception:
    """The error to raise for a value at `step` whose conversion raised `error`."""
    if isinstance(error, HandlerTimeout | OSError | MemoryError):
        return error
    if not isinstance(error, Mismatch):
        error = _refusal(error)
    if step is not None:
        error.path.append(step)
    return error


def _refusal(error: Exception) -> Mismatch:
    if isinstance(error, RecursionError):
        return Mismatch(" is nested too deeply")
    if hasattr(error, "errors") and hasattr(error, "error_count"):  # pydantic.ValidationError
        first = error.errors()[0]
        refusal = Mismatch(f": {first['msg']}")
        refusal.path = list(reversed(first["loc"]))
        return refusal
    named = "" if isinstance(error, TypeError | ValueError) and str(error) else f"{type(error).__name__}: "
    text = " ".join(str(error)[:1000].split())
    return Mismatch(f": {named}{text}".rstrip(": "))


def mismatch(expected: str, data: Any) -> Mismatch:
    if data is None or isinstance(data, dict | list):
        found = "null" if data is None else NAMES[type(data)]
    else:
        found = repr(data)[:80]
    return Mismatch(f": expected {expected}, not {found}", expected, found)


def unknown(name: str, known: Collection[str]) -> Mismatch:
    """The mismatch for a field that the type does not have."""
    from difflib import get_close_matches

    near = "".join(f", did you mean {each}?" for each in get_close_matches(name[:80], known, 1))
    return Mismatch(f" is unknown{near}" if near else f" is unknown: expected {', '.join(known) or 'none'}")


def deeper(data: Any, kind: type, depth: int) -> int:
    """The depth of the members of `data`. Raises Mismatch if it is not of `kind`, or nested too deeply."""
    if not isinstance(data, kind):
        raise mismatch(NAMES[kind], data)
    if depth >= DEPTH_MAX:
        raise Mismatch(f" is nested too deeply: at most {DEPTH_MAX} objects and lists in one another")
    return depth + 1


def furthest(problems: list[Mismatch]) -> Mismatch:
    """The mismatch whose field is deepest. If several concern the value itself: one that joins what they expected."""
    deepest = max(len(problem.path) for problem in problems)
    left = [problem for problem in problems if len(problem.path) == deepest]
    expected = list(dict.fromkeys(problem.expected for problem in left if problem.expected))
    if deepest == 0 and expected and all(problem.expected for problem in left):
        return Mismatch(
            f": expected {' or '.join(expected)}, not {left[0].found}", " or ".join(expected), left[0].found
        )
    return next((problem for problem in left if not problem.expected), left[0]) if deepest == 0 else left[0]
