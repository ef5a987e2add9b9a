"""Every error of a command or a worker that reaches a user (of calls: protocol/call.py), grouped by who can fix it; each class has its exit code.

The codes are those of sysexits.h(3head), so that a process manager can tell "try again" from "fix this first".
A worker's own exit code is passed through and may coincide; our failures always print a line on standard error.
"""


class SandboxrunError(Exception):
    """Base of all errors.

    `message`: one line, what is wrong, with the value and where it stands.
    `hint`: one command to paste, or the lines to write, valid as they stand; values in it are quoted for a shell.
    """

    exit_code = 70  # EX_SOFTWARE: a defect of sandboxrun

    def __init__(self, message: str = "", hint: "str | tuple[str, ...]" = "") -> None:
        super().__init__(message)
        self.hint: tuple[str, ...] = hint if isinstance(hint, tuple) else (hint,) if hint else ()
        if self.hint:
            self.add_note("hint: " + "\n".join(self.hint))  # for a traceback, as of a script that does not catch it


class UsageError(SandboxrunError):
    """The command line is wrong."""

    exit_code = 64  # EX_USAGE


class IntegrityError(SandboxrunError):
    """The content is not what was pinned."""

    exit_code = 65  # EX_DATAERR


class ScriptError(SandboxrunError):
    """What a script says about itself, one of its files, or its lock of packages is wrong."""

    exit_code = 65  # EX_DATAERR


class SpecError(SandboxrunError):
    """What a spec.json says is wrong."""

    exit_code = 65  # EX_DATAERR


class FetchError(SandboxrunError):
    """The script could not be fetched, or the fetched file is not a script."""

    exit_code = 69  # EX_UNAVAILABLE


class ConfigGone(SandboxrunError):
    """The hash that the worker was started from was removed while it ran, or Redis has lost it."""

    exit_code = 66  # EX_NOINPUT


class SandboxError(SandboxrunError):
    """The kernel, or this host's configuration, lacks what the sandbox needs. Nothing was run."""

    exit_code = 71  # EX_OSERR


class AlreadyRunningError(SandboxrunError):
    """The worker's `pid` belongs to another living process, or another run took it over."""

    exit_code = 73  # EX_CANTCREAT


class StoreError(SandboxrunError):
    """Redis cannot be reached, or refuses."""

    exit_code = 75  # EX_TEMPFAIL


class PolicyError(SandboxrunError):
    """The operator's policy does not allow it, or the operator has not approved it. Nothing was run."""

    exit_code = 77  # EX_NOPERM


class ConfigError(SandboxrunError):
    """A hash field, an option, the policy file or the key on standard input is wrong."""

    exit_code = 78  # EX_CONFIG


class NotConfigured(ConfigError):
    """There is no hash for the worker, or it has no url or version yet."""


class SecretError(ConfigError):
    """A secret cannot be decrypted or does not belong to this worker."""


class MissingSecret(SecretError, KeyError):
    """A secret is asked for that was not stored with this worker."""

    __str__ = Exception.__str__  # KeyError's shows the message as a literal


class ConnectionLost(StoreError):
    """Redis cannot be reached or cannot serve at the moment: what is worth another try."""


class LoginRefused(StoreError):
    """Redis refuses the login. This may pass: a server that was restarted, or has taken over, gets its users later."""


class TakenOver(StoreError):
    """Another run has this worker's `pid` now."""

    exit_code = 73  # EX_CANTCREAT
