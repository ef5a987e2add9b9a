"""What a wrong command line was most likely meant to be. Imported only after something went wrong."""

from __future__ import annotations

import argparse
import os
import re
import shlex

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CUTOFF = 0.6  # difflib's ratio: two letters of five may differ
WORD_MAX_CHARS = 80
_WITHOUT_REDIS = ("init", "check", "audit", "cache", "completion", "help")
_RUN = "sandboxrun"  # how a run's parser calls itself
_LOGIN = re.compile(r"://[^/\s@]*@")
_NUMBERS = {"int": "a whole number", "float": "a number"}


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` most likely stands for."""
    import difflib

    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower()[:WORD_MAX_CHARS], by_lower, 1, CUTOFF)
    return by_lower[close[0]] if close else None


def question(near: str | None) -> str:
    """The end of a message: the name that was probably meant."""
    return f": did you mean {near}?" if near else ""


def check_command(args: Sequence[str], names: Sequence[str]) -> None:
    """Raise UsageError if `args` look like a command and not like a run. `names`: those of `args` that are no option."""
    if not names or len(names) == 2:
        return
    first, *rest = names
    if first in COMMANDS:  # it is not the first word, or it would have been called
        raise UsageError(
            f"options of {first} are given in front of it: they belong behind it",
            hint=command_hint(args, first, first),
        )
    if len(names) > 2 and (command := next((name for name in rest if name in COMMANDS), None)):
        raise UsageError(
            f"{_quoted(first)} is not a command, and {command} is: it comes first",
            hint=command_hint(args, command, command),
        )
    near = nearest(first, COMMANDS)
    if near is not None:
        raise UsageError(
            f"{_quoted(first)} is not a command{question(near)}",
            hint=command_hint(args, first, near),
        )
    if len(names) > 2:
        raise UsageError(
            f"{_quoted(first)} is not a command, and a run takes two words, TYPE and ID, not {len(names)}",
            hint="sandboxrun help",
        )


def command_meant(args: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """The command that a run of a worker without a hash was probably meant for, and the command line for it."""
    if len(names) != 2:
        return None
    near = names[0] if names[0] in COMMANDS else nearest(names[0], COMMANDS)
    return (near, command_hint(args, names[0], near)) if near is not None else None


def command_hint(args: Sequence[str], typed: str, command: str) -> str:
    """The same command line with `command` in front, in place of the word `typed`."""
    rest = list(args)
    rest.remove(typed)
    if not _may_be_shown(rest):
        return f"sandboxrun {command} --help"
    return f"sandboxrun {shlex.join([command, *rest])}"


def check_action(parser: argparse.ArgumentParser, words: Sequence[str], action: str, actions: Iterable[str]) -> None:
    """Raise UsageError if `action`, one of `words`, is not among `actions`."""
    known = list(actions)
    if action in known:
        return
    near = nearest(action, known)
    message = f"{_quoted(action)} is not an action: expected {', '.join(known[:-1])} or {known[-1]}"
    if near is None:
        raise UsageError(message, hint=help_hint(parser))
    meant = [near if word == action else word for word in words]
    raise UsageError(f"{message}; did you mean {near}?", hint=again_hint(parser, meant))


def too_much(parser: argparse.ArgumentParser, words: Sequence[str], rest: Sequence[str]) -> UsageError:
    """The error for the words `rest` of `words`, which mean nothing to the parser."""
    option = next((word for word in rest if word.startswith("-") and word != "-"), None)
    if option is None:
        return UsageError(f"{_quoted(rest[0])} is one word too many", hint=help_hint(parser))
    name, equals, value = option.partition("=")
    spellings = {each.lstrip("-"): each for each in parser._option_string_actions if len(each) > 2}
    word = nearest(name.lstrip("-"), spellings)  # the dashes are alike in all
    if word is None:
        return UsageError(f"there is no option {_quoted(name)}", hint=help_hint(parser))
    near = spellings[word]
    meant = [near + equals + value if given == option else given for given in words]
    return UsageError(f"there is no option {_quoted(name)}{question(near)}", hint=again_hint(parser, meant))


def wrong(parser: argparse.ArgumentParser, words: Sequence[str], message: str) -> UsageError:
    """The error for what argparse says of `words`."""
    if match := re.fullmatch(r"the following arguments are required: (.+)", message):
        missing = [name for name in match[1].split(", ") if name not in _optional(parser)]
        verb = "is" if len(missing) == 1 else "are"
        added = [part for name in missing for part in _as_given(parser, name)]
        return UsageError(f"{' and '.join(missing)} {verb} missing", hint=again_hint(parser, [*words, *added]))
    match = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
    action = next((each for each in parser._actions if match and _name(each) == match[1]), None)
    if match is None or action is None or not action.option_strings:
        return UsageError(message, hint=help_hint(parser))
    option, metavar = action.option_strings[-1], str(action.metavar)
    if match[2] == "expected one argument":
        return UsageError(f"{option} has no value: expected {metavar}", hint=again_hint(parser, _put(words, action)))
    if kind := re.match(r"invalid (int|float) value: (.*)", match[2], re.DOTALL):
        text = f"{option} is {kind[2][:WORD_MAX_CHARS]}: expected {_NUMBERS[kind[1]]}"
        return UsageError(text, hint=again_hint(parser, _put(words, action)))
    if match[2].startswith("ignored explicit argument"):
        bare = [word.partition("=")[0] if word.startswith(f"{option}=") else word for word in words]
        return UsageError(f"{option} takes no value", hint=again_hint(parser, bare))
    return UsageError(message, hint=help_hint(parser))


def with_redis(hint: tuple[str, ...], args: Sequence[str]) -> tuple[str, ...]:
    """The hint for the same Redis: with the option --redis of `args`, if they have one, and no login that it has."""
    url = next((word.partition("=")[2] for word in args if word.startswith("--redis=")), "")
    if not url and "--redis" in args[:-1]:
        url = args[args.index("--redis") + 1]
    bare = _LOGIN.sub("://", url)
    if len(hint) != 1 or not url or not _may_be_shown([bare]) or "--redis" in hint[0]:
        return hint
    words = hint[0].split()
    if words[:1] != ["sandboxrun"] or words[1:2] in ([name] for name in _WITHOUT_REDIS) or "--help" in words:
        return hint
    return (f"{hint[0]} --redis {shlex.quote(_LOGIN.sub('://USER:PASSWORD@', url))}",)


def with_user(hint: tuple[str, ...]) -> tuple[str, ...]:
    """Of redis://:PASSWORD@HOST, redis-cli sends the empty name: the hint names the user."""
    from sandboxrun.errors import SandboxrunError
    from sandboxrun.redis.address import parse_url

    try:
        address = parse_url(os.environ.get("REDIS_URL", ""))
    except SandboxrunError:
        return hint
    if not address.password or address.user:
        return hint
    url = 'redis-cli -u "$REDIS_URL"'
    return tuple(line.replace(f"{url} ", f"{url} --user default ") for line in hint)


def help_hint(parser: argparse.ArgumentParser) -> str:
    return f"{'sandboxrun run' if parser.prog == _RUN else parser.prog} --help"


def again_hint(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """The command with these words."""
    if not _may_be_shown(words):
        return help_hint(parser)
    return f"{parser.prog} {shlex.join(words)}"


def _may_be_shown(words: Iterable[str]) -> bool:
    """Whether no word has a password or a token in it: an error may end in a log."""
    from sandboxrun.describe.fields import mask

    return all(mask(word) == word for word in words)


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) if action.option_strings else str(action.metavar)


def _optional(parser: argparse.ArgumentParser) -> list[str]:
    """Arguments that argparse lists as missing beside others, and that may be missing."""
    return [_name(each) for each in parser._actions if each.nargs == "*"]


def _as_given(parser: argparse.ArgumentParser, name: str) -> list[str]:
    """A missing argument as it has to be given."""
    action = next((each for each in parser._actions if _name(each) == name), None)
    return [name, str(action.metavar)] if action is not None and action.option_strings else [name]


def _put(words: Sequence[str], action: argparse.Action) -> list[str]:
    """The words with the placeholder of this option as its value."""
    metavar, spellings = str(action.metavar), action.option_strings
    rest, done = iter(words), []
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in spellings:
            done += [f"{name}={metavar}"] if equals else [name, metavar]
            if not equals:
                value = next(rest, None)
                done += [value] if value is not None and value.startswith("-") else []
        else:
            done.append(word)
    return done


def with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """The words with this value of an option, in place of those that they have."""
    rest, done = iter(words), []
    for word in rest:
        name, equals, _ = word.partition("=")
        if name != option:
            done.append(word)
        elif not equals:
            next(rest, None)
    return [*done, option, value]


def _quoted(word: str) -> str:
    return repr(word[:WORD_MAX_CHARS])
