"""The reference of the command line, from the command line itself: docs/commands.md and the man page docs/sandboxrun.1.

python docs/generate.py            write both
python docs/generate.py --check    exit with 1 where one is not what it would be written as
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sandboxrun import errors
from sandboxrun.cli.commands import COMMANDS

HERE = Path(__file__).parent
WIDTH = 110
HEAD = """\
# The command line

This is the output of each command's `--help`, collected by `python docs/generate.py`.
`man -l docs/sandboxrun.1` shows the same as a man page.
"""
MAN_HEAD = r""".\" Made by docs/generate.py
.TH SANDBOXRUN 1
.SH NAME
sandboxrun \- run Python workers that take requests from Redis, confined by the Linux kernel
.SH SYNOPSIS
.B sandboxrun
.RI [ options ]
.I TYPE ID
.br
.B sandboxrun
.I COMMAND
.RI [ options ]
.SH DESCRIPTION
A Redis hash TYPE:ID:h names a worker script by URL and pinned version and lists its permissions. sandboxrun reads the hash,
fetches the script, verifies and caches it, and runs it in a process on which the Linux kernel enforces those permissions.
"""
MAN_TAIL = r""".SH ENVIRONMENT
.TP
.B REDIS_URL
the URL of Redis, if \-\-redis is not given (default: redis://127.0.0.1:6379)
.TP
.B XDG_CONFIG_HOME, XDG_CACHE_HOME, XDG_STATE_HOME, XDG_DATA_HOME
the base folders of the operator's policy (sandboxrun/policy.toml), fetched scripts, pins and records, and workers' own data
.TP
.B SANDBOXRUN_TRACE_STARTUP
a file to which the times of a start are appended
.TP
.B NO_COLOR
no colours
.SH SEE ALSO
.BR landlock (7),
.BR seccomp (2),
.BR redis\-server (1)
"""


def help_of(command: str) -> str:
    """What `sandboxrun COMMAND --help` prints, on a terminal of WIDTH columns."""
    program = "from sandboxrun.cli import main; main()"
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        [sys.executable, "-c", program, command, "--help"], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.rstrip() + "\n"


def exit_codes() -> list[tuple[int, str]]:
    """Code and first line of what it means, of each class of errors that a run ends with."""
    classes = [errors.SandboxrunError, *errors.SandboxrunError.__subclasses__()]
    found: dict[int, str] = {}
    for kind in classes:
        found.setdefault(kind.exit_code, (kind.__doc__ or "").splitlines()[0])
    return sorted({**found, 70: "A defect of sandboxrun; of call: the handler failed."}.items())


def markdown(texts: dict[str, str]) -> str:
    parts = [HEAD]
    for command, text in texts.items():
        title = "sandboxrun TYPE ID" if command == "run" else f"sandboxrun {command}"
        parts.append(f"## {title}\n\n```\n{text}```\n")
    return "\n".join(parts)


def man(texts: dict[str, str]) -> str:
    def raw(text: str) -> str:
        escaped = text.replace("\\", "\\e").replace("-", "\\-")
        return "".join("\\&" + line if line[:1] in (".", "'") else line for line in escaped.splitlines(keepends=True))

    parts = [MAN_HEAD, ".SH OPTIONS\n.nf\n", raw(texts["run"]), ".fi\n.SH COMMANDS\n"]
    for command, text in texts.items():
        if command != "run":
            parts.append(f'.SS "sandboxrun {command}"\n.nf\n{raw(text)}.fi\n')
    parts.append(".SH EXIT STATUS\nThe worker's own, 128+n when signal n ended it, or\n")
    parts += [f".TP\n.B {code}\n{raw(meaning)}\n" for code, meaning in exit_codes()]
    return "".join([*parts, MAN_TAIL])


def main() -> int:
    texts = {command: help_of(command) for command in COMMANDS}
    stale = []
    for name, text in (("commands.md", markdown(texts)), ("sandboxrun.1", man(texts))):
        path = HERE / name
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(str(path))
    if stale:
        print(f"not up to date: {', '.join(stale)}: python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
