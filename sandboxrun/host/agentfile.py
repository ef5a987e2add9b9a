"""What an agent is told: by agent.toml, which lies beside the user's policy.toml, and by the command line, which wins.

types = ["greeter", "resizer"]
most-workers = 50
memory = "8G"
spares = 4
page = "127.0.0.1:9300"
metrics-file = "/var/lib/node_exporter/sandboxrun.prom"
"""

from __future__ import annotations

import os
import stat

from sandboxrun.config import keys
from sandboxrun.config.limits import LIMITS
from sandboxrun.config.secrets import KEY_LINE_MAX_BYTES, parse_key_line
from sandboxrun.config.toml import line_fault
from sandboxrun.errors import ConfigError, SecretError, UsageError
from sandboxrun.host.folders import Folders
from sandboxrun.policy.file import read_text
from sandboxrun.records import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

WORKERS_DEFAULT, WORKERS_MAX = 200, 400
SPARES_DEFAULT, SPARES_MAX = 2, 16
TYPES_MAX = 64
NAMES = ("types", "most-workers", "memory", "spares", "page", "metrics-file")
CREDENTIALS = "CREDENTIALS_DIRECTORY"  # of systemd.exec(5)


@record
class AgentOptions:
    """An agent's own. `memory`: bytes that all its workers may use before it takes no more; 0 is any number."""

    redis_url: str
    types: tuple[str, ...]
    most: int = WORKERS_DEFAULT
    memory: int = 0
    spares: int = SPARES_DEFAULT
    page: str = ""  # HOST:PORT, as are the metrics
    metrics: str = ""
    metrics_file: str = ""
    policy: str | None = None  # a policy file instead of the user's
    audit: tuple[str, ...] = ()
    key_lines: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # by type; "" is for the others

    def key_line(self, type_: str) -> bytes | None:
        return self.key_lines.get(type_, self.key_lines.get(""))


def path_of(folders: Folders) -> str:
    return os.path.join(os.path.dirname(folders.policies[-1]), "agent.toml")


def read(folders: Folders) -> dict[str, Any]:
    """The values of the file by name, checked; empty without a file. Raises ConfigError."""
    path = path_of(folders)
    try:
        text = read_text(path, False)
    except ConfigError as error:
        raise ConfigError(str(error).replace("the policy file", "the file"), hint=error.hint) from error
    if text is None:
        return {}
    for number, line in enumerate(text.splitlines(), 1):
        if fault := line_fault(line):
            raise ConfigError(f"{path}:{number} has {fault}")
    import tomllib

    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return {name: _checked(name, value, path) for name, value in values.items()}


def _checked(name: str, value: Any, path: str) -> Any:
    where = f"{name} of {path}"
    match name:
        case "types":
            if not isinstance(value, list) or len(value) > TYPES_MAX or not all(isinstance(t, str) for t in value):
                raise ConfigError(f'{where} is no list of types: expected at most {TYPES_MAX}, as in ["greeter"]')
            return tuple(dict.fromkeys(_type(type_, where) for type_ in value))
        case "most-workers":
            return number(_no_text(value, where), where, 1, WORKERS_MAX)
        case "spares":
            return number(_no_text(value, where), where, 0, SPARES_MAX)
        case "memory":
            return memory(str(value), where)
        case "page":
            return _page(_text(value, where), where)
        case "metrics-file":
            if not os.path.isabs(_text(value, where)):
                raise ConfigError(f"{where} is {value[:80]!r}: expected an absolute path")
            return value
        case _:
            import difflib

            near = difflib.get_close_matches(name[:80], NAMES, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path} has {name[:80]!r}: expected one of {', '.join(NAMES)}{meant}")


def _type(text: str, where: str) -> str:
    try:
        return keys.check_type(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _no_text(value: Any, where: str) -> Any:
    """In TOML a number has no quotes."""
    if isinstance(value, str):
        raise ConfigError(f"{where} is the text {value[:40]!r}: expected a number, without quotes")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {str(value)[:40]!r}: expected a text, in quotes")
    return value


def _page(text: str, where: str) -> str:
    from sandboxrun.host.page import parse_address

    try:
        parse_address(text, where, "", loopback=True)
    except UsageError as error:
        raise ConfigError(str(error)) from error  # its hint is for the command line
    return text


def number(value: object, where: str, least: int, most: int) -> int:
    """Raises ConfigError. A text, too, as of an option."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{where} is {str(value)[:40]!r}: expected a number from {least} to {most}")
    return value


def memory(text: str, where: str) -> int:
    return LIMITS["memory"].read(text, where)


def key_lines(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, bytes]:
    """The keys for secrets, by type; "" is for all others. `given`: FILE or TYPE=FILE of --key-file.

    Without one, the file `key` of $CREDENTIALS_DIRECTORY is read if there is one, and `TYPE.key` for a type. Raises
    ConfigError, SecretError.
    """
    found: dict[str, bytes] = {}
    for text in given:
        type_, equals, path = text.partition("=")
        if not equals or "/" in type_:
            type_, path = "", text
        if type_:
            keys.check_type(type_)
        if type_ in found:
            raise ConfigError(f"--key-file is given twice for {type_ or 'all types'}")
        found[type_] = _key_line(path, 0o077)
    folder = environment.get(CREDENTIALS, "")
    if not given and os.path.isabs(folder):
        for name in sorted(_names(folder)):
            type_ = name.removesuffix(".key") if name != "key" else ""
            if name == "key" or name.endswith(".key"):
                # systemd gives a service read access by an ACL, which shows as the group's.
                found[keys.check_type(type_) if type_ else ""] = _key_line(os.path.join(folder, name), 0o007)
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _key_line(path: str, forbidden: int) -> bytes:
    from shlex import quote

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"the key file {path} is not a file")
            if status.st_mode & forbidden:
                mode = stat.S_IMODE(status.st_mode)
                may_mend = status.st_uid == os.geteuid() or not os.geteuid()
                raise ConfigError(
                    f"the key file {path} can be read by others (mode {mode:o})",
                    hint=f"chmod 600 -- {quote(path)}" if may_mend else "",
                )
            line = file.read(KEY_LINE_MAX_BYTES).partition(b"\n")[0] + b"\n"
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from error
    try:
        parse_key_line(line)
    except SecretError as error:
        text = str(error).replace("standard input", f"the key file {path}", 1)
        raise SecretError(text.replace(f"the key on the key file {path}", f"the key in {path}")) from error
    return line
