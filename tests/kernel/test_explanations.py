"""The line after an uncaught refusal of a file: it names the right that the call wanted, however it was called."""

from __future__ import annotations

import pytest
from arena import Arena

PREPARED = """
import io, pathlib, shutil, subprocess, tempfile
from os import open as low, O_WRONLY as ONLY_WRITE
HERE = "/etc/passwd"       # is there, and may not even be read
GONE = "/var/tmp/absent"   # is not there
flags, how = os.O_RDWR | os.O_CREAT, {"mode": "w"}
class Opener:
    def create(self, name, mode="x"):
        return open(
            name,
            mode,
        )
def attempt():
    pass
"""
READS = [
    "open(HERE)",
    "open(HERE, 'rb')",
    "open(HERE, encoding='utf-8')",
    "io.open(file=HERE, mode='r')",
    "os.open(HERE, os.O_RDONLY)",
    "low(HERE, 0)",
    "io.FileIO(HERE)",
    "os.listdir('/etc')",
    "pathlib.Path(HERE).read_text()",
    "shutil.copyfile(HERE, 'mine')",
    "[open(name) for name in [HERE]]",
    "(lambda name: open(name))(HERE)",
    "eval('open(HERE)')",
]
WRITES = [
    "open(HERE, 'w')",
    "open(HERE, 'r+b')",
    "open(HERE, mode='a')",
    "os.open(HERE, os.O_WRONLY | os.O_TRUNC)",
    "os.open(HERE, flags=flags)",
    "low(HERE, ONLY_WRITE)",
    "io.FileIO(HERE, 'a')",
    "pathlib.Path(HERE).write_text('x')",
    "pathlib.Path(HERE).open('a')",
    "os.truncate(HERE, 0)",
    "os.unlink(HERE)",
    "pathlib.Path(HERE).unlink()",
    "os.rename(HERE, '/etc/other')",
    "pathlib.Path(HERE).rename('/etc/other')",
    "os.rmdir('/etc')",
    "os.chmod(HERE, 0o600)",
    "open(os.__file__, **how)",  # unknown; what can be read was to be written
    "os.symlink('x', GONE)",
]
CREATES = [
    "open(GONE, 'w')",
    "open(GONE, **how)",  # unknown; what is not there was to be made
    "Opener().create(GONE)",
    "os.mkdir(GONE)",
    "pathlib.Path(GONE).mkdir()",
    "eval('open(GONE, \"x\")')",
]


def hints(arena: Arena, statements: list[str]) -> list[str]:
    """The last line that each of these leaves on standard error."""
    code = PREPARED
    for statement in statements:
        code += f"try:\n    {statement}\nexcept PermissionError as error:\n    sys.excepthook(type(error), error, error.__traceback__)\n    print('---', file=sys.stderr)\n"
    found = arena.confined(code)
    assert found.code == 0
    return [block.strip().splitlines()[-1] for block in found.stderr.split("---\n")[:-1]]


@pytest.mark.parametrize(("statements", "kind"), [(READS, "read"), (WRITES, "write"), (CREATES, "write")])
def test_the_line_names_the_right_that_the_call_wanted(arena: Arena, statements: list[str], kind: str) -> None:
    found = hints(arena, statements)
    assert len(found) == len(statements)
    for statement, line in zip(statements, found, strict=True):
        assert line.startswith(f"Requires {kind} access to "), (statement, line)
        if statements is CREATES:
            assert f"--allow-{kind}=/var/tmp (" in line, (statement, line)


def test_a_worker_that_takes_the_explanation_apart_keeps_its_traceback(arena: Arena) -> None:
    code = "import linecache\nlinecache.getlines = None\ndef attempt(): pass\nopen('/etc/passwd')"
    found = arena.confined(code)
    assert found.code == 1
    assert "PermissionError: [Errno 13] Permission denied: '/etc/passwd'" in found.stderr
