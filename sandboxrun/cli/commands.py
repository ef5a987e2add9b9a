"""The names of the commands: each is a module of this package with `main(args) -> exit code`."""

COMMANDS = (
    "run",
    "check",
    "call",
    "info",
    "dead",
    "stream",
    "diff",
    "approve",
    "audit",
    "encrypt",
    "cache",
    "plugins",
    "init",
    "dev",
    "lock",
    "show",
    "set",
    "perms",
    "trace",
    "redish",
    "ps",
    "health",
    "stop",
    "logs",
    "doctor",
    "completion",
    "help",
)

CONFINING = ("check", "dev", "doctor")  # and `run`: they confine a worker, or say whether one can be
