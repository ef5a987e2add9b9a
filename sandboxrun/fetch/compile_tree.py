"""Compiled code of the files beside a script.

Run as a program, within limits as parse.py has them, because a megabyte of hostile text can cost Python's parser seconds and a
gigabyte. Standard input has pairs of a name and a source, standard output the marshalled codes, each behind its length; an
empty one for a text that is no Python. The supervisor never unmarshals a code. Imports nothing of the project.
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
_LENGTH_BYTES = 8


def compile_all(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The .pyc of each Python file, by its path; none for one that does not compile, which the worker's import will report."""
    import importlib.util
    import subprocess

    paths = [path for path in sources if path.endswith(".py")]
    if not paths:
        return {}
    pairs = b"".join(_framed(path.encode()) + _framed(sources[path]) for path in paths)
    command = [sys.executable, "-I", "-S", "-X", "utf8", __file__]
    done = subprocess.run(command, input=pairs, capture_output=True, env={}, check=False)
    return {
        path: importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(sources[path]) + code
        for path, code in zip(paths, _unframed(done.stdout), strict=False)
        if code
    }


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def _unframed(data: bytes) -> Iterator[bytes]:
    """What is whole: the process may have been ended by a limit."""
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
    for name in parts:
        sys.stdout.buffer.write(_framed(_code(name.decode(), next(parts))))


if __name__ == "__main__":
    _main()
