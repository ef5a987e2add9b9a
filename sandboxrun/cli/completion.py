"""sandboxrun completion."""

from __future__ import annotations

import importlib
import os
import threading

from sandboxrun.cli.parser import Parser, captured
from sandboxrun.errors import SandboxrunError, UsageError

REDIS_SECONDS = 0.5  # how long a Tab waits for Redis
SCAN_SECONDS = 0.25
_EPILOG = """\
examples:
  eval "$(sandboxrun completion bash)"                in ~/.bashrc
  eval "$(sandboxrun completion zsh)"                 in ~/.zshrc, after compinit
  sandboxrun completion fish > ~/.config/fish/completions/sandboxrun.fish

Tab completes commands, options, fields, TYPE and ID. TYPE and ID come from the records of the runs on this host and from
Redis (--redis on the line, else REDIS_URL), if Redis answers within half a second.
"""


def main(args: list[str]) -> int:
    if args[:1] == ["--words"]:  # not the parser's: what follows is somebody else's command line
        return _answer(args[1:] or [""])
    parser = Parser(
        prog="sandboxrun completion", description="Print a shell's completion for sandboxrun.", epilog=_EPILOG
    )
    parser.add_argument("shell", metavar="bash|zsh|fish")
    options = parser.parse_args(args)

    from sandboxrun.cli.candidates import SCRIPTS
    from sandboxrun.cli.mistakes import help_hint, nearest

    if options.shell not in SCRIPTS:
        near = nearest(options.shell, SCRIPTS)
        raise UsageError(
            f"there is no completion for {options.shell[:80]!r}: expected bash, zsh or fish",
            hint=f"sandboxrun completion {near}" if near else help_hint(parser),
        )
    print(SCRIPTS[options.shell], end="")
    return 0


def _answer(words: list[str]) -> int:
    """`words`: what is typed after sandboxrun; the last one is begun, or empty."""
    from sandboxrun.cli.candidates import candidates, lines, parse
    from sandboxrun.cli.commands import COMMANDS

    command = words[0] if len(words) > 1 and words[0] in COMMANDS else "run"
    rest = words[1:] if command == words[0] and len(words) > 1 else words
    line = parse(captured(importlib.import_module(f"sandboxrun.cli.{command}").main), rest)
    found = candidates(line, lambda: _workers(line.options.get("--redis")))
    if len(words) == 1 and not words[0].startswith("-"):
        found = iter([*((name, "command") for name in COMMANDS), *found])
    for each in lines(found, line.word):
        print(each)
    return 0


def _workers(url: str | None) -> list[tuple[str, str]]:
    """The workers that Redis knows, if it answers in time, and those that ran here."""
    from sandboxrun.cli.fleet import known_here

    known = known_here()
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.extend(_of_redis(url)), daemon=True)
    thread.start()
    thread.join(REDIS_SECONDS)
    return sorted({*known, *found})


def _of_redis(url: str | None) -> list[tuple[str, str]]:
    from sandboxrun.cli.redis import connected
    from sandboxrun.fleet import workers as fleet

    try:
        with connected(url or os.environ.get("REDIS_URL")) as connection:
            return fleet.find(connection, seconds=SCAN_SECONDS).workers
    except SandboxrunError:
        return []
