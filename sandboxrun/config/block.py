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
_REQUIREMENT = re.compile(  # PEP 508, without a URL; possessive, because a row of spaces could be split in many ways
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
    r"\s*+(?:\[[A-Za-z0-9._, -]*\])?+"
    r"\s*+(?:\(?[<>=!~][^;@/()]*+\)?)?+"
    r"\s*+(?:;[^@/]*+)?+"
)
# Unrolled, so that only one way leads through each text: possessive groups with a look-ahead fail in Python 3.11.2.
_LITERAL = r"""'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''|\"\"\"[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*\"\"\"
    |'(?!'')[^'\\\n]*(?:\\.[^'\\\n]*)*['\n]|"(?!"")[^"\\\n]*(?:\\.[^"\\\n]*)*["\n]"""
_LITERAL_HERE = re.compile(_LITERAL, re.DOTALL | re.VERBOSE)
_WHOLE = re.compile(rf"(?:[^'\"\#]+|\#[^\n]*|{_LITERAL})*", re.DOTALL | re.VERBOSE)  # code that ends outside of one
_LONG_KEY = re.compile(  # of 17 parts or more: tomllib takes quadratic time for it
    r"""(?:(?<![\w-])[\w-]++|"[^"\n]*"|'[^'\n]*')(?:[ \t]*+\.[ \t]*+(?:[\w-]++|"[^"\n]*"|'[^'\n]*')){16}"""
)
_KEYS = ("files", "lock", "exclude-newer")
_TOP_KEYS = ("dependencies", "requires-python", "tool")  # PEP 723


def read_block(source: bytes, origin: str) -> Block | None:
    """The block of a script; None if it has none. Raises ScriptError, which names the line.

    A block that is not closed is no block (PEP 723), nor is one in a string literal.
    """
    if OPENING not in source:
        return None
    text = source.decode("utf-8-sig").replace("\r\n", "\n")
    spans = [span for span in _spans(text.split("\n")) if span[2] == "script"]
    in_code = _in_code(text, [first for first, _, _ in spans])
    spans = [span for span in spans if span[0] in in_code]
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
    openings = [number for number, line in enumerate(lines, 1) if line == "# /// script" and number not in closed]
    return min(_in_code(text, openings), default=None)


def ignored_line(source: bytes) -> tuple[int, str] | None:
    """The line of what is meant to open a block and does not, and why; None if a script has a block, or nothing like one."""
    line = unclosed_line(source)
    if line is not None:
        return line, "has a block `# /// script` that no line `# ///` closes"
    for number, text in enumerate(source.decode("utf-8-sig", "replace").splitlines(), 1):
        if text != "# /// script" and re.fullmatch(r"#\s*///\s*script\s*", text):
            return number, f"has {text[:40]!r}, which opens no block: expected '# /// script'"
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
    if "__pycache__" in map(str.lower, segments):
        return "lies where Python keeps compiled code"
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


def _in_code(text: str, lines: list[int]) -> set[int]:
    """Those of the `lines` of a program, in ascending order, that do not begin in a string literal. One pass."""
    found: set[int] = set()
    known = start = 0  # all before `known` is code that ends outside of a literal; `start` is of the line `number`
    number = 1
    for line in lines:
        for _ in range(line - number):
            start = text.index("\n", start) + 1
        number = line
        if start < known:
            continue  # in a literal that ends further on
        match = _WHOLE.match(text, known, start)
        known = match.end() if match is not None else known
        if known == start:
            found.add(line)
            continue
        literal = _LITERAL_HERE.match(text, known)
        if literal is None:
            break  # it has no end
        known = literal.end()
        if known == start:  # a quote that the end of its line ends
            found.add(line)
    return found


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
        for key in document:
            if key not in _TOP_KEYS:
                self._wrong(key, document[key], f"one of the keys {', '.join(_TOP_KEYS)}")
        tool = document.get("tool", {})
        own = tool.get("sandboxrun", {}) if isinstance(tool, dict) else self._wrong("tool", tool, "a table")
        if "sandboxrun" not in tool:
            self._check_names(tool)
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

    def _check_names(self, tool: dict[str, Any]) -> None:
        """Raise ScriptError for a table that is most likely meant to be ours."""
        import difflib

        for name in difflib.get_close_matches("sandboxrun", [*tool], 1, 0.8):
            raise ScriptError(f"{self._line(name)} has [tool.{name[:80]}]: expected [tool.sandboxrun]")

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
