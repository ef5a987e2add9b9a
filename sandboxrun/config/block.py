"""Reads the block of metadata in a script: what counts as one, and what may stand in it. Pure.

Imported when a script is seen for the first time; what it says is kept, because to read it takes longer than all else of a
start.
"""

from __future__ import annotations

import re

from sandboxrun.config.script import FILES_MAX, OPENING, Block
from sandboxrun.errors import ScriptError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

BLOCK_MAX_BYTES = 64 * 1024
DEPENDENCIES_MAX = 200

_DEPTH_MAX, _PATH_MAX = 8, 200
_OPENING = re.compile(r"# /// ([A-Za-z0-9-]+)")
_CLOSING = "# ///"
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_REQUIREMENT = re.compile(  # PEP 508, without a URL
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
    r"\s*(?:\[[A-Za-z0-9._, -]*\])?"
    r"\s*(?:\(?[<>=!~][^;@/()]*\)?)?"
    r"\s*(?:;[^@/]*)?"
)
_WHOLE = re.compile(  # code that ends outside of a string literal, in one pass
    r"""(?:[^'"#]++|\#[^\n]*+
    |'''(?:[^'\\]|\\.|'(?!''))*+'''|\"\"\"(?:[^"\\]|\\.|"(?!""))*+\"\"\"
    |'(?!'')(?:[^'\\\n]|\\.)*+['\n]|"(?!"")(?:[^"\\\n]|\\.)*+["\n])*+""",
    re.DOTALL | re.VERBOSE,
)
_LONG_KEY = re.compile(  # of 17 parts or more: tomllib takes quadratic time for it
    r"""(?:(?<![\w-])[\w-]++|"[^"\n]*"|'[^'\n]*')(?:[ \t]*+\.[ \t]*+(?:[\w-]++|"[^"\n]*"|'[^'\n]*')){16}"""
)
_KEYS = ("files", "lock", "exclude-newer")


def read_block(source: bytes, origin: str) -> Block | None:
    """The block of a script; None if it has none. Raises ScriptError, which names the line.

    A block that is not closed is no block (PEP 723), nor is one in a string literal.
    """
    if OPENING not in source:
        return None
    text = source.decode("utf-8-sig").replace("\r\n", "\n")
    found = _spans(text.split("\n"))
    spans = [span for span in found if span[2] == "script" and not _in_string(text, span[0])]
    if not spans:
        return None
    first, last, _ = spans[0]
    if len(spans) > 1:
        raise ScriptError(f"{origin}:{spans[1][0]} has a second block `# /// script`; line {first} has the first")
    lines = text.split("\n")[first : last - 1]
    content = "\n".join(line[2:] for line in lines)
    if len(content) > BLOCK_MAX_BYTES:
        raise ScriptError(f"{origin}:{first} has a block of more than {BLOCK_MAX_BYTES >> 10} KiB")
    return _Reader(origin, first, content).read(last)


def unclosed_line(source: bytes) -> int | None:
    """The line of a `# /// script` that no `# ///` follows, which therefore counts for nothing."""
    if OPENING not in source:
        return None
    text = source.decode("utf-8-sig").replace("\r\n", "\n")
    lines = text.split("\n")
    closed = {number for first, last, _ in _spans(lines) for number in range(first, last + 1)}
    for number, line in enumerate(lines, 1):
        if line == "# /// script" and number not in closed and not _in_string(text, number):
            return number
    return None


def path_fault(path: str) -> str:
    """What is wrong with the name of one of a script's files; empty if nothing is."""
    segments = path.split("/")
    if len(path) > _PATH_MAX:
        return f"is longer than {_PATH_MAX} characters"
    if not all(map(_SEGMENT.fullmatch, segments)):
        return "is no relative path of ASCII letters, digits, '.', '_' and '-' whose parts do not begin with a dot"
    if len(segments) > _DEPTH_MAX:
        return f"lies deeper than {_DEPTH_MAX} folders"
    if segments[0].partition(".")[0].lower() == "sandboxrun":
        return "would hide the package sandboxrun"
    return ""


def _spans(lines: list[str]) -> list[tuple[int, int, str]]:
    """(line of the opening, line of the closing, type) of all closed blocks.

    PEP 723 has a regular expression for it, which takes quadratic time; this takes one pass. A run of comment lines has at
    most one block: from the first opening to the last closing.
    """
    spans = []
    opening: tuple[int, str] | None = None
    closing = 0
    for number, line in enumerate((*lines, ""), 1):
        if opening is None:
            match = _OPENING.fullmatch(line)
            opening = (number, match[1]) if match else None
        elif line == _CLOSING:
            closing = number
        elif line != "#" and not line.startswith("# "):  # the run of comments ends
            if closing > opening[0] + 1:
                spans.append((opening[0], closing, opening[1]))
            opening, closing = None, 0
    return spans


def _in_string(text: str, line: int) -> bool:
    """Whether a line of a program begins in a string literal."""
    start = 0
    for _ in range(line - 1):
        start = text.index("\n", start) + 1
    match = _WHOLE.match(text, 0, start)
    return match is None or match.end() < start


class _Reader:
    """Reads the TOML of one block."""

    def __init__(self, origin: str, first_line: int, content: str) -> None:
        self._origin, self._first, self._content = origin, first_line, content

    def read(self, last_line: int) -> Block:
        import tomllib  # late, because most scripts have no block

        long = _LONG_KEY.search(self._content)
        if long is not None:
            line = self._first + self._content.count("\n", 0, long.start()) + 1
            raise ScriptError(f"{self._origin}:{line} has {long[0][:40]!r}, a name of more than 16 parts")
        try:
            document = tomllib.loads(self._content)
        except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
            match = re.search(r"at line ([0-9]+)", str(error))
            line = int(match[1]) if match else self._content.count("\n") + 1
            reason = (
                re.sub(r" \(at .*\)$", "", str(error))[:200] if isinstance(error, ValueError) else "nested too deep"
            )
            raise ScriptError(f"{self._origin}:{self._first + line} is not TOML: {reason}") from error
        tool = document.get("tool", {})
        own = tool.get("sandboxrun", {}) if isinstance(tool, dict) else self._wrong("tool", tool, "a table")
        if not isinstance(own, dict):
            self._wrong("sandboxrun", own, "a table [tool.sandboxrun]")
        for key in own:
            if key not in _KEYS:
                self._wrong(key, own[key], f"one of the keys {', '.join(_KEYS)} in [tool.sandboxrun]")
        requires = document.get("requires-python", "")
        if not isinstance(requires, str) or not re.fullmatch(r"[0-9A-Za-z.,*<>=!~ ]{0,200}", requires):
            self._wrong("requires-python", requires, 'versions as in ">=3.11"')
        newer = own.get("exclude-newer", "")
        if not isinstance(newer, str) or not re.fullmatch(r"[0-9A-Z:.+-]{0,40}", newer):
            self._wrong("exclude-newer", newer, 'a date as in "2026-11-30"')
        lock = own.get("lock")
        return Block(
            self._first,
            last_line,
            requires_python=requires.strip(),
            dependencies=self._dependencies(document.get("dependencies", [])),
            files=self._files(own.get("files", {})),
            lock=None if lock is None else self._digest("lock", lock),
            exclude_newer=newer,
        )

    def _dependencies(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > DEPENDENCIES_MAX:
            self._wrong("dependencies", value, f"a list of at most {DEPENDENCIES_MAX} requirements")
        for requirement in value:
            if (
                not isinstance(requirement, str)
                or not requirement.isprintable()  # a line more would be an option in a file of requirements
                or not _REQUIREMENT.fullmatch(requirement.strip())
            ):
                self._wrong(
                    "dependencies",
                    requirement,
                    'names with versions, as in "requests>=2", and no URLs, paths or options',
                )
        return tuple(requirement.strip() for requirement in value)

    def _files(self, value: Any) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict) or len(value) > FILES_MAX:
            self._wrong("files", value, f'a table of at most {FILES_MAX} files, as in {{ "helpers.py" = "sha256:…" }}')
        lower: dict[str, str] = {}
        for path, digest in value.items():
            fault = path_fault(path)
            if fault:
                raise ScriptError(f"{self._line(path)} has the file {path[:80]!r}, which {fault}")
            other = lower.setdefault(path.lower(), path)
            if other != path:
                raise ScriptError(
                    f"{self._line(path)} has the files {other!r} and {path!r}, which differ in case alone"
                )
            self._digest(path, digest)
        self._check_folders(value)
        return tuple(sorted((path, digest.removeprefix("sha256:")) for path, digest in value.items()))

    def _check_folders(self, files: dict[str, str]) -> None:
        """Raise ScriptError if a file's name is a folder of another one's."""
        lower = {path.lower() for path in files}
        for path in files:
            parts = path.lower().split("/")
            if any("/".join(parts[:count]) in lower for count in range(1, len(parts))):
                raise ScriptError(f"{self._line(path)} has the file {path!r} below another file")

    def _digest(self, key: str, value: Any) -> str:
        match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
        return match[1] if match else self._wrong(key, value, '"sha256:" and 64 lower-case hexadecimal digits')

    def _wrong(self, key: str, value: Any, expected: str) -> NoReturn:
        raise ScriptError(f"{self._line(key)} has {key[:80]} = {str(value)[:80]!r}: expected {expected}")

    def _line(self, key: str) -> str:
        """ORIGIN:LINE of the nearest line with this key, because tomllib does not tell."""
        lines = self._content.split("\n")
        number = next((number for number, line in enumerate(lines, 1) if key[:80] in line), 0)
        return f"{self._origin}:{self._first + number}"
