"""Compiled code of the files beside a script.

Run as a program, within limits as parse.py has them, because a megabyte of hostile text can cost Python's parser seconds and a
gigabyte. Constant folding makes megabytes of code of a kilobyte of source, so the codes together are bounded too. Standard input
has pairs of a name and a source, standard output the marshalled codes, each behind its length; an empty one for a text that is no
Python, and for a code beyond the bound. The supervisor never unmarshals a code.
"""

from __future__ import annotations

import marshal
import resource
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: hash-based, and never compared with the source
_CPU_SECONDS, _MEMORY_BYTES = 30, 1 << 30
_WALL_SECONDS = 50  # a busy machine may take longer than _CPU_SECONDS
CODES_MAX_BYTES = 32 << 20  # together; 8 MiB of the standard library's source make 10 MiB
_LENGTH_BYTES = 8


def compile_all(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The .pyc of each Python file, by its path, of CODES_MAX_BYTES together. None for a file that does not compile, or beyond a
    bound: the worker's import compiles it, or reports the error.
    """
    import importlib.util

    from sandboxrun.fetch.bounded import output_of  # here, because the program imports nothing of the project

    paths = [path for path in sources if path.endswith(".py")]
    if not paths:
        return {}
    pairs = b"".join(_framed(path.encode()) + _framed(sources[path]) for path in paths)
    command = [sys.executable, "-I", "-S", "-X", "utf8", __file__]
    max_bytes = CODES_MAX_BYTES + _LENGTH_BYTES * len(paths)
    output, _ = output_of(command, pairs, max_bytes=max_bytes, seconds=_WALL_SECONDS)
    return {
        path: importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(sources[path]) + code
        for path, code in zip(paths, _unframed(output), strict=False)
        if code
    }


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def _unframed(data: bytes) -> Iterator[bytes]:
    """The whole parts: a limit may have ended the process."""
    at = 0
    while at + _LENGTH_BYTES <= len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
        if at <= len(data):
            yield data[start:at]


def _code(name: str, source: bytes) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return b""


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parts = _unframed(sys.stdin.buffer.read())
    remaining = CODES_MAX_BYTES
    for name in parts:
        code = _code(name.decode(), next(parts))
        if len(code) > remaining:
            code = b""
        remaining -= len(code)
        sys.stdout.buffer.write(_framed(code))


if __name__ == "__main__":
    _main()
