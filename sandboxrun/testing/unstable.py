"""Values that are never the same twice, and the matchers that a recorded test has instead."""

from __future__ import annotations

import re
import time
from typing import Any

from sandboxrun.spec import match

_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"  # ISO 8601
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_SHORT_HEX = (
    "(?=[0-9]*[{0}])(?=[{0}]*[0-9])[0-9{0}]{{8,15}}"  # with digits and letters, or it may be a word or a number
)
# How they are found, and what a test has instead.
_FORMS = (
    (_TIME, _TIME),
    (_UUID, _UUID),
    (r"[0-9a-f]{16,}", r"[0-9a-f]{16,}"),
    (r"[0-9A-F]{16,}", r"[0-9A-F]{16,}"),
    (_SHORT_HEX.format("a-f"), r"[0-9a-f]{8,15}"),
    (_SHORT_HEX.format("A-F"), r"[0-9A-F]{8,15}"),
    (r"\d{10}(?:\.\d+)?|\d{13}", r"[0-9.]+"),  # seconds or milliseconds since 1970, if it is about now
)
_EPOCH = len(_FORMS)
NOW_SECONDS = 24 * 3600  # by which such a number may differ from now
_UNSTABLE = re.compile("|".join(rf"(?<![0-9A-Za-z])({form})(?![0-9A-Za-z])" for form, _ in _FORMS))


class Known:
    """The texts of the request and of the keys before: what comes from there is the same each time."""

    def __init__(self, values: list[Any]) -> None:
        self._found: set[str] = set()
        self._collect(values)

    def _collect(self, value: Any) -> None:
        if isinstance(value, str):
            self._found.update(found[0] for found in _UNSTABLE.finditer(value))
        elif isinstance(value, int | float):
            self._found.add(str(value))
        elif isinstance(value, list):
            for item in value:
                self._collect(item)
        elif isinstance(value, dict):
            for name, item in value.items():
                self._collect(name)
                self._collect(item)

    def is_unstable(self, text: str) -> bool:
        return any(map(self._differs, _UNSTABLE.finditer(text)))

    def _differs(self, found: re.Match[str]) -> bool:
        """Whether it is another one each time."""
        return found[0] not in self._found and (found.lastindex != _EPOCH or _is_about_now(float(found[0])))

    def loosened(self, expected: Any) -> Any:
        """Expected JSON, with a matcher for each text that is never the same twice."""
        if isinstance(expected, str):
            return self._matcher(match.literal(expected)) if self.is_unstable(expected) else expected
        if isinstance(expected, list):
            return [self.loosened(item) for item in expected]
        if isinstance(expected, dict) and "$base64" not in expected:
            return {name: self.loosened(item) for name, item in expected.items()}
        if isinstance(expected, int | float) and not isinstance(expected, bool) and _is_about_now(expected):
            return {"$schema": {"type": "number"}} if str(expected) not in self._found else expected
        return expected

    def _matcher(self, text: str) -> dict[str, str]:
        """What stands around it stays as it is."""
        pattern, end = "", 0
        for found in _UNSTABLE.finditer(text):
            if found.lastindex is not None and self._differs(found):
                pattern += _escaped(text[end : found.start()]) + _FORMS[found.lastindex - 1][1]
                end = found.end()
        return {"$match": pattern + _escaped(text[end:])}


def _is_about_now(number: float) -> bool:
    """As seconds or milliseconds since 1970."""
    now = time.time()
    return any(abs(number / unit - now) < NOW_SECONDS for unit in (1, 1000))


def _escaped(text: str) -> str:
    """As a regular expression. Unlike re.escape, it leaves what needs no escape as it is read best."""
    return re.sub(r"[\\.^$*+?{}\[\]|()]", r"\\\g<0>", text)
