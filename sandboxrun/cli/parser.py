"""What the parsers of all commands share."""

from __future__ import annotations

import argparse

from sandboxrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps what is one line; what is more, as examples are, stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class Parser(argparse.ArgumentParser):
    """Errors are UsageError; options are never abbreviated; the epilog keeps its lines."""

    def __init__(self, prog: str, *, description: str, epilog: str | None = None, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="say more; show tracebacks")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, *args: Any, **named: Any) -> Any:
        if _capturing:
            raise _Captured(self)
        return super().parse_known_args(*args, **named)

    def parse_known_intermixed_args(self, *args: Any, **named: Any) -> Any:
        if _capturing:
            raise _Captured(self)
        return super().parse_known_intermixed_args(*args, **named)


_capturing = False


class _Captured(Exception):
    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def captured(main: Callable[[list[str]], int]) -> Parser:
    """The parser that a command makes, without running it: each makes it, and has it parse, before anything else."""
    global _capturing
    _capturing = True
    try:
        main([])
    except _Captured as found:
        return found.parser
    finally:
        _capturing = False
    raise AssertionError("the command parses nothing")


def connect_option(parser: Parser) -> None:
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="redis://, rediss:// or unix:// (default: REDIS_URL, else redis://127.0.0.1:6379)",
    )


def type_parser(command: str, *, description: str, epilog: str | None = None) -> Parser:
    """Of a command about the workers of one type: TYPE comes first, and --redis says where they are."""
    parser = Parser(prog=f"sandboxrun {command}", description=description, epilog=epilog)
    parser.add_argument("type", metavar="TYPE")
    connect_option(parser)
    return parser


def worker_parser(command: str, *, description: str, example: str) -> Parser:
    """Of a command about one worker and what it may do: TYPE and ID come first; `example` stands below the options."""
    parser = Parser(prog=f"sandboxrun {command}", description=description, epilog=f"examples:\n{example}")
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("id", metavar="ID")
    connect_option(parser)
    parser.add_argument("--policy", metavar="FILE", help="as sandboxrun TYPE ID takes it")
    return parser


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
