"""Values that are never the same twice, and the matchers that a recorded test has instead."""

from __future__ import annotations

import re
from typing import Any

from sandboxrun.spec import match

_FORMS = (
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?",  # a time, ISO 8601
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",  # a UUID
    r"[0-9a-f]{16,}",
    r"[0-9A-F]{16,}",
)
_UNSTABLE = re.compile("|".join(rf"(?<![0-9A-Za-z])({form})(?![0-9A-Za-z])" for form in _FORMS))


class Known:
    """The texts of the request and of the keys before: what comes from there is the same each time."""

    def __init__(self, values: list[Any]) -> None:
        self._found: set[str] = set()
        self._collect(values)

    def _collect(self, value: Any) -> None:
        if isinstance(value, str):
            self._found.update(found[0] for found in _UNSTABLE.finditer(value))
        elif isinstance(value, list):
            for item in value:
                self._collect(item)
        elif isinstance(value, dict):
            for name, item in value.items():
                self._collect(name)
                self._collect(item)

    def is_unstable(self, text: str) -> bool:
        return any(found[0] not in self._found for found in _UNSTABLE.finditer(text))

    def loosened(self, expected: Any) -> Any:
        """Expected JSON, with a matcher for each text that is never the same twice."""
        if isinstance(expected, str):
            return self._matcher(match.literal(expected)) if self.is_unstable(expected) else expected
        if isinstance(expected, list):
            return [self.loosened(item) for item in expected]
        if isinstance(expected, dict) and "$base64" not in expected:
            return {name: self.loosened(item) for name, item in expected.items()}
        return expected

    def _matcher(self, text: str) -> dict[str, str]:
        """What stands around it stays as it is."""
        pattern, end = "", 0
        for found in _UNSTABLE.finditer(text):
            if found[0] not in self._found and found.lastindex is not None:
                pattern += _escaped(text[end : found.start()]) + _FORMS[found.lastindex - 1]
                end = found.end()
        return {"$match": pattern + _escaped(text[end:])}


def _escaped(text: str) -> str:
    """As a regular expression. Unlike re.escape, it leaves what needs no escape as it is read best."""
    return re.sub(r"[\\.^$*+?{}\[\]|()]", r"\\\g<0>", text)
