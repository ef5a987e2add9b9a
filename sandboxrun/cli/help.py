"""sandboxrun help."""

from __future__ import annotations

import sys

from sandboxrun.cli.commands import COMMANDS
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.permissions import Kind
from sandboxrun.errors import UsageError

# Each command: its arguments, and what it does.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "write a worker": {
        "init": ("NAME", "make a folder with a worker and a test, ready to run"),
        "dev": ("FOLDER|FILE|TYPE ID", "run a worker, and restart it when a file is saved"),
        "test": ("FOLDER …", "run the tests of spec.json against the worker in the folder"),
        "spec": ("ACTION [FOLDER]", "print what its spec.json says: documentation, types, AsyncAPI"),
        "lock": ("FILE|FOLDER [FILE …]", "pin a script's other files and packages by their digests"),
        "sync": ("ACTION [FOLDER]", "prepare PostgreSQL for the tables that a sync.json describes"),
        "plugins": ("[NAME]", "list the workers that come with sandboxrun, and how to set one up"),
    },
    "configure a worker": {
        "set": ("TYPE [ID] FIELD=VALUE …", "change its hash, after the checks that a run makes"),
        "encrypt": ("TYPE ID --key-file FILE", "encrypt its secrets"),
        "show": ("TYPE ID", "show its hash, what it means, and what is wrong with it"),
        "redish": ("KEY|PATTERN [FIELD …]", "print keys of Redis, a field and its value on each line"),
        "perms": ("TYPE ID [--net HOST:PORT …]", "say whether it may do something, and why"),
        "diff": ("TYPE ID", "list the permissions that nobody has approved yet"),
        "approve": ("TYPE ID", "approve those permissions"),
    },
    "run workers": {
        "run": ("TYPE ID", "the same as sandboxrun TYPE ID, for a type named like a command"),
        "agent": ("[TYPE …]", "run many workers, and keep them running"),
        "start": ("TYPE [ID …]", "order workers, which agents keep running"),
        "scale": ("TYPE N", "set how many workers of a type run"),
        "drain": ("[HOST]", "have agents hand over to others, and end"),
        "ps": ("[TYPE]", "list the workers that run, on all hosts"),
        "logs": ("TYPE ID [-f]", "show what a worker printed on this host"),
        "health": ("[TYPE ID]", "say whether agents and workers of this host work, for probes"),
        "info": ("TYPE [--watch]", "show requests, consumers and rates of a type"),
        "stop": ("TYPE ID …", "end workers, on whatever host they run"),
    },
    "send requests": {
        "call": ("TYPE JSON|KEY=VALUE …", "send a request and print the reply"),
        "trace": ("REF", "show what became of a request"),
        "dead": ("TYPE", "list, resend or drop the requests that were given up"),
        "stream": ("TYPE ACTION", "create, trim, show or delete the streams of a type"),
    },
    "look after this machine": {
        "doctor": ("", "check kernel, Redis, folders, policy and versions"),
        "check": ("", "try each protection of the sandbox"),
        "audit": ("FILE", "read an audit log"),
        "cache": ("[--clean]", "list or remove the fetched scripts"),
        "completion": ("bash|zsh|fish", "print the completion script of a shell"),
        "help": ("[COMMAND]", "print this, or the help of a command"),
    },
}
_WIDTH = 34

# Of a run: `sandboxrun run --help` explains each of them.
_OPTIONS = {
    "Redis": ("--redis URL", "--wait"),
    "script": ("--reload", "--cached-only", "--allow-import HOSTS"),
    "permissions": ("--allow-KIND LIST", "--deny-KIND LIST"),
    "": (f"KIND: {', '.join(Kind)}",),
    "limits": ("--limit-NAME N",),
    " ": (f"NAME: {', '.join(LIMITS)}",),
    "policy": ("--policy FILE", "--yes", "--audit FILE", "--allow-degraded FEATURES"),
    "debugging": ("--inspect", "--inspect-wait", "--debug"),
    "output": ("--quiet", "--json-logs", "--no-log"),
    "other": ("--version", "--help"),
}


def main(args: list[str]) -> int:
    from sandboxrun.cli.parser import Parser

    parser = Parser(
        prog="sandboxrun help",
        description="Print what sandboxrun can do, or the help of one command.",
        epilog="examples:\n  sandboxrun help\n  sandboxrun help perms      the same as sandboxrun perms --help",
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="default: an overview of all")
    command = parser.parse_args(args).command
    if command is None:
        print(overview(), end="")
        return 0
    if command not in COMMANDS:
        from sandboxrun.cli.mistakes import nearest, question

        near = nearest(command, COMMANDS)
        raise UsageError(
            f"{command[:80]!r} is not a command{question(near)}",
            hint=f"sandboxrun help {near}" if near else "sandboxrun help",
        )
    raise AssertionError("the command line calls the command itself with --help")


def without_arguments() -> int:
    """The overview on standard error: without arguments nothing was done, so this is not what a pipe expects."""
    print(overview(), end="", file=sys.stderr)
    return UsageError.exit_code


def overview() -> str:
    lines = [
        "usage: sandboxrun [options] TYPE ID    run the worker that the Redis hash TYPE:ID:h describes",
        "       sandboxrun COMMAND …            sandboxrun help COMMAND explains a command",
    ]
    for title, commands in GROUPS.items():
        lines += ["", title]
        for name, (arguments, purpose) in commands.items():
            lines.append(f"  {f'{name} {arguments}'.rstrip():<{_WIDTH}} {purpose}")
    lines += ["", "options of a run (explained by: sandboxrun run --help)"]
    lines += [f"  {name.strip():<12} {'  '.join(options)}" for name, options in _OPTIONS.items()]
    lines += ["", "first steps: sandboxrun init greeter && sandboxrun dev greeter", ""]
    return "\n".join(lines)
