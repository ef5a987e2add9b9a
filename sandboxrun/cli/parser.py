"""What the parsers of all commands share."""

from __future__ import annotations

import argparse

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
    """Errors are UsageErrors; options stand anywhere and are never abbreviated; the epilog keeps its lines."""

    def __init__(self, prog: str, *, description: str, epilog: str | None = None, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._positionals.title = "arguments"
        self._words: list[str] = []
        self.add_argument("--debug", action="store_true", help="print more, and tracebacks")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options may stand between the words, but what follows `--` is no option. Raises UsageError."""
        self._words = list(args)
        parse = self.parse_known_args if "--" in self._words else self.parse_known_intermixed_args
        options, rest = parse(self._words, namespace)
        if rest:
            from sandboxrun.cli.mistakes import too_much

            raise too_much(self, self._words, rest)
        return options

    def error(self, message: str) -> NoReturn:
        from sandboxrun.cli.mistakes import wrong

        raise wrong(self, self._words, message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if _capturing:
            raise _Captured(self)
        self._words = self._words or list(args)
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        if _capturing:
            raise _Captured(self)
        return super().parse_known_intermixed_args(args, namespace)


_capturing = False


class _Captured(Exception):
    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def captured(main: Callable[[list[str]], int]) -> Parser:
    """The parser of a command, without running the command: each makes its parser and parses before anything else."""
    global _capturing
    _capturing = True
    try:
        main([])
    except _Captured as found:
        return found.parser
    finally:
        _capturing = False
    raise AssertionError("the command parses nothing")


def connect_option(parser: argparse._ActionsContainer, *, default: str = "redis://127.0.0.1:6379") -> None:
    parser.add_argument(
        "--redis", metavar="URL", help=f"redis://, rediss:// or unix:// (default: $REDIS_URL, else {default})"
    )


def type_parser(command: str, *, description: str, epilog: str | None = None) -> Parser:
    """The parser of a command about one type of worker: TYPE comes first, and --redis names their Redis."""
    parser = Parser(prog=f"sandboxrun {command}", description=description, epilog=epilog)
    parser.add_argument("type", metavar="TYPE")
    connect_option(parser)
    return parser


def worker_parser(command: str, *, description: str, example: str, or_type: bool = False) -> Parser:
    """The parser of a command about one worker: TYPE and ID come first; `example` stands below the options.

    `or_type`: ID may be missing, and then the command is about the hash of the type.
    """
    parser = Parser(prog=f"sandboxrun {command}", description=description, epilog=f"examples:\n{example}")
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("id", metavar="ID", nargs="?" if or_type else None)
    connect_option(parser)
    parser.add_argument("--policy", metavar="FILE", help="a policy file instead of the user's policy.toml")
    return parser


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
