"""The words that can come next on a command line, from the parsers of the commands; and the scripts that ask for them.

The scripts ask `sandboxrun completion --words WORD…` at each Tab, so that they need not be made again for a new version.
An answer is a line: the word, a tab, and its description; a word that ends with "=" is incomplete. FILES stands for file names.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.config.worker import READ_FIELDS

FILES = ":files"
_CHOICE = re.compile(r"[a-z]+(\|[a-z]+)+")
_PLACE = re.compile(r"\b(FILE|FOLDER)\b")

SCRIPTS = {
    "bash": r"""# sandboxrun: eval "$(sandboxrun completion bash)", or in ~/.local/share/bash-completion/completions/sandboxrun
_sandboxrun() {
    local word rest
    COMPREPLY=()
    while IFS=$'\t' read -r word rest; do
        if [[ $word == :files ]]; then
            compopt -o default
        elif [[ -n $word ]]; then
            COMPREPLY+=("$word")
            [[ $word == *= ]] && compopt -o nospace
        fi
    done < <("${COMP_WORDS[0]}" completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null </dev/null)
}
complete -F _sandboxrun sandboxrun
""",
    "zsh": r"""#compdef sandboxrun
# sandboxrun: eval "$(sandboxrun completion zsh)" after compinit, or as _sandboxrun in a folder of fpath
_sandboxrun() {
    local line word files
    local -a found open
    for line in "${(@f)$("${words[1]}" completion --words "${(@)words[2,CURRENT]}" 2>/dev/null </dev/null)}"; do
        word=${line%%$'\t'*}
        if [[ $word == :files ]]; then
            files=1
        elif [[ $word == *= ]]; then
            open+=("$word")
        elif [[ -n $word ]]; then
            found+=("${word//:/\\:}:${line#*$'\t'}")
        fi
    done
    (( $#found )) && _describe sandboxrun found
    (( $#open )) && compadd -S '' -- $open
    [[ -n $files ]] && _files
}
if [[ $funcstack[1] == _sandboxrun ]]; then _sandboxrun "$@"; else compdef _sandboxrun sandboxrun; fi
""",
    "fish": r"""# sandboxrun: sandboxrun completion fish > ~/.config/fish/completions/sandboxrun.fish
function __sandboxrun_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in ($words[1] completion --words $words[2..-1] "$current" 2>/dev/null </dev/null)
        if test "$line" = ":files"
            __fish_complete_path "$current"
        else
            echo $line
        end
    end
end
complete -c sandboxrun -f -a '(__sandboxrun_complete)'
""",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A command line as far as it is typed: the command's parser, its words, and the word that is begun."""

    parser: argparse.ArgumentParser
    positionals: list[str]
    options: dict[str, str]  # by their first spelling
    pending: argparse.Action | None  # an option that waits for its value
    word: str


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> Line:
    """`words`: after the command; the last one is begun, or empty."""
    *before, word = words
    actions = parser._option_string_actions
    positionals: list[str] = []
    options: dict[str, str] = {}
    pending: argparse.Action | None = None
    ended = False
    for each in before:
        name, equals, value = each.partition("=")
        if pending is not None:
            options[pending.option_strings[0]], pending = each, None
        elif each == "--" and not ended:
            ended = True
        elif ended or not each.startswith("-") or each == "-":
            positionals.append(each)
        elif (action := actions.get(name)) is not None:
            options[action.option_strings[0]] = value
            pending = action if not equals and action.nargs != 0 and action.nargs != "?" else None
    return Line(parser, positionals, options, pending, word)


def candidates(line: Line, workers: Callable[[], list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """Words and their descriptions. `workers` lists types and ids; it is called only if they matter."""
    if line.pending is not None:
        yield from _named(_metavar(line.pending), line.pending.help or "")
    elif line.word.startswith("-"):
        yield from _options(line)
    else:
        yield from _positional(line, workers)


def _options(line: Line) -> Iterator[tuple[str, str]]:
    if "=" in line.word:
        return
    for action in line.parser._actions:
        again = action.option_strings and action.option_strings[0] in line.options
        if action.help == argparse.SUPPRESS or (again and not isinstance(action, argparse._AppendAction)):
            continue
        for name in action.option_strings:
            yield name, (action.help or "").replace("%%", "%")


def _positional(line: Line, workers: Callable[[], list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    places = [action for action in line.parser._actions if not action.option_strings]
    at = len(line.positionals)
    if at >= len(places) and not (places and places[-1].nargs in ("*", "+")):
        return
    place = places[min(at, len(places) - 1)]
    metavar = _metavar(place)
    if metavar == "TYPE" or metavar.endswith(("|TYPE", "|TYPE ID")):
        types = dict.fromkeys(type_ for type_, _ in workers())
        yield from ((type_, "worker type") for type_ in types)
    # Elsewhere ID is of something else, as of a dead letter.
    if metavar == "ID" and places[max(0, places.index(place) - 1)].metavar == "TYPE":
        yield from ((id_, "worker") for type_, id_ in workers() if [type_] == line.positionals[:1])
    elif metavar.endswith("|TYPE ID") and at == 1:
        yield from ((id_, "worker") for type_, id_ in workers() if type_ == line.positionals[0])
    yield from _named(metavar, place.help or "")


def _named(metavar: str, what: str) -> Iterator[tuple[str, str]]:
    if _CHOICE.fullmatch(metavar):
        yield from ((word, what) for word in metavar.split("|"))
    elif metavar == "FIELD=VALUE":
        yield from ((f"{field}=", "field") for field in READ_FIELDS)
    elif metavar == "COMMAND":
        yield from ((command, "command") for command in COMMANDS)
    elif metavar == "FIELD":
        yield from ((field, "field") for field in READ_FIELDS)
    elif metavar == "DIGEST":
        yield from _digests()
    if _PLACE.search(metavar):
        yield FILES, ""


def _digests() -> Iterator[tuple[str, str]]:
    """Of what `cache --remove` may mean."""
    from sandboxrun.errors import SandboxrunError
    from sandboxrun.host.folders import Folders
    from sandboxrun.host.inventory import holdings

    try:
        entries = holdings(Folders.of_user())
    except SandboxrunError:
        return
    yield from ((entry.name, entry.kind.noun) for entry in entries)


def _metavar(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else ""


def lines(found: Iterator[tuple[str, str]], word: str) -> Iterator[str]:
    """The answer to a shell: the words that begin with `word`, each once."""
    seen = set()
    for name, what in found:
        if name not in seen and (name == FILES or name.startswith(word)):
            seen.add(name)
            short = " ".join(what.split())
            yield name if name == FILES else f"{name}\t{short[:100]}"
