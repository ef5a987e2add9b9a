"""Writes the digests of the files and of the lock into a script's block (PEP 723). Pure.

Only those lines change: comments, order, line endings and the rest of the script keep their bytes. A result that does not
read as intended is refused, for example if the block has `tool = { … }` in one line.
"""

from __future__ import annotations

import re

from sandboxrun.config.block import ignored_line, read_block
from sandboxrun.errors import ScriptError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_OWN = ("tool", "sandboxrun")
_BOM = b"\xef\xbb\xbf"
_CODING = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*[-_.a-zA-Z0-9]+")  # PEP 263
_TOKEN = re.compile(
    r"""(?P<string>\"\"\"(?:\\.|[^\\])*?\"\"\"\"{0,2}|'''.*?''''{0,2}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    |(?P<comment>\#[^\n]*)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<equals>=)|(?P<end>\n)|[^"'\#\[\]{}=\n]+""",
    re.DOTALL | re.VERBOSE,
)


@record
class _Statement:
    """A header or `key = value` of TOML. `first` and `last` are its lines, from 0; `value` is the span of the value in `text`."""

    path: tuple[str, ...]  # with the header's
    first: int
    last: int
    text: str
    value: tuple[int, int] | None  # None: a header

    def parsed(self) -> Any:
        assert self.value is not None
        return _parsed(self.text[slice(*self.value)])


def with_digests(
    source: bytes, *, files: Mapping[str, str], lock: str | None, origin: str, exclude_newer: str = ""
) -> bytes:
    """The script with these files (path to sha256 in hexadecimal), this lock (sha256) and this date in its block.

    A script without a block gets one, unless there is nothing to write. Raises ScriptError.
    """
    try:
        source.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ScriptError(f"{origin} is not UTF-8") from None
    block = read_block(source, origin)
    if block is None:
        ignored = ignored_line(source)
        if ignored is not None:
            raise ScriptError(f"{origin}:{ignored[0]} {ignored[1]}")
        if not files and lock is None and not exclude_newer:
            return source
        source = _with_block(source)
        return with_digests(source, files=files, lock=lock, origin=origin, exclude_newer=exclude_newer)
    lines = source.split(b"\n")
    ending = b"\r" if lines[block.first_line - 1].endswith(b"\r") else b""
    inside = lines[block.first_line : block.last_line - 1]
    content = [line.decode().removesuffix("\r")[2:] for line in inside]
    values = {"lock": None if lock is None else f"sha256:{lock}", "exclude-newer": exclude_newer or None}
    wanted = {path: f"sha256:{digest}" for path, digest in sorted(files.items())}
    edited = _Editor(content).edited(values, wanted)
    if edited == list(range(len(content))):
        return source
    after = "\n".join(content[line] if isinstance(line, int) else line for line in edited)
    if not _as_intended("\n".join(content), after, {**values, "files": wanted or None}):
        raise ScriptError(
            f"{origin}:{block.first_line} has a block whose table [tool.sandboxrun] cannot be edited: "
            "write it with this header and one line for each key"
        )
    new = [inside[line] if isinstance(line, int) else b"# " + line.encode() + ending for line in edited]
    result = b"\n".join([*lines[: block.first_line], *new, *lines[block.last_line - 1 :]])
    read_block(result, origin)  # refuses too many files, and names that differ in case alone
    return result


def _with_block(source: bytes) -> bytes:
    """The script with an empty block: below `#!` and the encoding, above all else."""
    bom = _BOM if source.startswith(_BOM) else b""
    lines = source.removeprefix(bom).split(b"\n")
    ending = b"\r\n" if lines[0].endswith(b"\r") else b"\n"
    count = 1 if lines[0].startswith(b"#!") else 0
    count = next((at for at, line in enumerate(lines[:2], 1) if _CODING.match(line)), count)
    head, rest = lines[:count], lines[count:] or [b""]
    separate = b"" if rest[0].strip() == b"" else ending  # a comment that follows is no part of the block
    block = b"# /// script" + ending + b"# [tool.sandboxrun]" + ending + b"# ///" + ending + separate
    return bom + b"".join(line + b"\n" for line in head) + block + b"\n".join(rest)


def _as_intended(before: str, after: str, wanted: Mapping[str, Any]) -> bool:
    """Whether `after` says what `before` does, but for the keys of [tool.sandboxrun] in `wanted`."""
    import tomllib

    def split(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        document = tomllib.loads(text)
        own = document.setdefault("tool", {}).setdefault("sandboxrun", {})
        return document, {key: own.pop(key, None) or None for key in wanted}

    try:
        return split(after) == (split(before)[0], wanted)
    except (ValueError, AttributeError):
        return False


class _Editor:
    """The lines of one block's TOML. `_new` has what stands in place of a line: numbers of lines that stay, and new ones."""

    def __init__(self, lines: list[str]) -> None:
        self._last = len(lines) - 1
        self._statements = list(_statements("\n".join(lines)))
        self._new: list[list[int | str]] = [[number] for number in range(len(lines))]
        self._has_header = self._header(_OWN) is not None

    def edited(self, values: Mapping[str, str | None], files: Mapping[str, str]) -> list[int | str]:
        """`values`: of keys of [tool.sandboxrun]; None removes the key."""
        for key, value in values.items():
            self._set_value(key, None if value is None else f'"{value}"')
        self._set_files({name: f'"{digest}"' for name, digest in files.items()})
        return [line for lines in self._new for line in lines]

    def _set_value(self, key: str, value: str | None) -> None:
        statement = next((each for each in self._statements if each.path == (*_OWN, key)), None)
        if statement is not None:
            self._replace(statement, value)
        elif value is not None:
            self._make_header()
            header = self._header(_OWN)
            self._new[self._last if header is None else header.first].append(f"{key} = {value}")

    def _set_files(self, wanted: dict[str, str]) -> None:
        path = (*_OWN, "files")
        inline = next((each for each in self._statements if each.path == path and each.value is not None), None)
        header = self._header(path)
        if inline is not None:
            pairs = ", ".join(f'"{name}" = {value}' for name, value in wanted.items())
            if wanted or inline.parsed():
                self._replace(inline, f"{{ {pairs} }}" if wanted else None)
        elif header is None and wanted:
            self._make_header()
            lines = (f'"{name}" = {value}' for name, value in wanted.items())
            self._new[self._end(_OWN)] += ["[tool.sandboxrun.files]", *lines]
        elif header is not None:
            entries = [each for each in self._statements if each.value is not None and each.path[:-1] == path]
            if entries and not wanted:
                self._new[header.first] = []
            for each in entries:
                self._replace(each, wanted.pop(each.path[-1], None))
            self._new[self._end(path)] += [f'"{name}" = {value}' for name, value in wanted.items()]

    def _header(self, path: tuple[str, ...]) -> _Statement | None:
        return next((each for each in self._statements if each.path == path and each.value is None), None)

    def _make_header(self) -> None:
        if not self._has_header:
            self._new[self._last].append("[tool.sandboxrun]")
            self._has_header = True

    def _end(self, path: tuple[str, ...]) -> int:
        """The last line of the table with this header, without the comments and empty lines below."""
        header = self._header(path)
        if header is None:  # it was made at the end
            return self._last
        last = header.last
        for each in self._statements:
            if each.first > header.first:
                if each.value is None:
                    break
                last = each.last
        return last

    def _replace(self, statement: _Statement, value: str | None) -> None:
        """Write another value into the same line, or remove the line."""
        assert statement.value is not None
        start, end = statement.value
        if value is not None and statement.parsed() == _parsed(value):
            return
        for number in range(statement.first, statement.last + 1):
            self._new[number] = []
        if value is not None:
            self._new[statement.first] += (statement.text[:start] + value + statement.text[end:]).split("\n")


def _parsed(value: str) -> Any:
    import tomllib

    return tomllib.loads(f"x = {value}")["x"]


def _statements(content: str) -> Iterator[_Statement]:
    """The statements of a valid document."""
    header: tuple[str, ...] = ()
    line = 0
    for text in _pieces(content):
        end = line + text.count("\n")
        tokens = list(_TOKEN.finditer(text))
        code = [token for token in tokens if token.lastgroup not in ("comment", "end") and token[0].strip()]
        if code:
            equals = next((token for token in code if token.lastgroup == "equals"), None)
            if equals is None:
                header = _key(text[code[0].start() : code[-1].end()].strip().strip("[]"))
                yield _Statement(header, line, end, text, None)
            else:
                path = _key(text[: equals.start()])
                stop = code[-1].start() + len(code[-1][0].rstrip())
                start = equals.end() + len(text[equals.end() :]) - len(text[equals.end() :].lstrip())
                yield _Statement((*header, *path), line, end, text, (start, stop))
        line = end + 1


def _pieces(content: str) -> Iterator[str]:
    """The lines, joined where brackets or a string go on."""
    depth = start = 0
    for token in _TOKEN.finditer(content):
        if token.lastgroup == "open":
            depth += 1
        elif token.lastgroup == "close":
            depth -= 1
        elif token.lastgroup == "end" and depth == 0:
            yield content[start : token.start()]
            start = token.end()
    yield content[start:]


def _key(text: str) -> tuple[str, ...]:
    """The parts of a dotted key."""
    import tomllib

    found: Any = tomllib.loads(f"{text} = 0")
    parts = []
    while isinstance(found, dict):
        ((part, found),) = found.items()
        parts.append(part)
    return tuple(parts)
