"""A Redis that requires no password: the question whether the operator accepts it, and the record in the policy file.

The record is for one server, not for all: who accepts the Redis of a laptop has not accepted one in a network. It is a
section of its own, [redis."URL"], because it can be appended to any policy file without a change to what stands there, and
because the sections for workers do not add up: of those that match, one counts.

The question can be answered at a terminal only, by a line that is typed after it was shown. A worker can answer it by
neither what it prints nor what the terminal sends back for that, which begins with an escape character. No grant makes the
policy file writable to a worker (host/plan.py, `protected`).
"""

from __future__ import annotations

import json
import os

from sandboxrun.errors import ConfigError, SandboxError
from sandboxrun.files import write_whole
from sandboxrun.log import escape
from sandboxrun.policy.approval import YES, ask
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.policy.file import FILE_MAX_BYTES, parse_policy, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def accept(ceiling: Ceiling, url: str, say: Callable[[str], None]) -> bool:
    """Whether the operator accepts this Redis. If no policy file says, a terminal is asked, and a yes is recorded.

    `url`: without a login. `say` is told what was recorded. Raises ConfigError if it cannot be recorded.
    """
    if ceiling.accepts_open_redis(url):
        return True
    if ceiling.forbids_open_redis(url) or not (os.isatty(0) and os.isatty(2)):
        return False
    answer = ask(
        f"Redis at {escape(url)} accepts commands without a password, so a worker could ignore its restricted login,\n"
        "and read and write every key there, its own permissions too.\n"
        f"A yes is recorded in {escape(ceiling.hint)}.\n"
        "Accept that for this machine? [y/N] "
    )
    if answer is None or answer.strip().lower() not in YES:
        return False
    record(ceiling.hint, url)
    say(f"recorded in {ceiling.hint}: {_header(url)} open-redis = true")
    return True


def refusal(ceiling: Ceiling, url: str) -> SandboxError:
    """What a run ends with that meets a Redis that nobody has accepted."""
    place = ceiling.forbids_open_redis(url)
    if place:
        return SandboxError(
            f"Redis at {url} accepts commands without a password, which {place} does not allow", hint=password_hint(url)
        )
    return SandboxError(
        f"Redis at {url} accepts commands without a password, so a worker could ignore its restricted login",
        hint=accept_hint(url, ceiling.hint),
    )


def accept_hint(url: str, path: str) -> tuple[str, ...]:
    """Accepts it in the policy file, which it makes if there is none. The empty line ends a last line without a newline."""
    from shlex import quote

    return (
        f"(umask 077; mkdir -p {quote(os.path.dirname(path))}; cat >>{quote(path)}) <<'END'",
        "",
        _header(url),
        "open-redis = true",
        "END",
    )


def password_hint(url: str) -> tuple[str, ...]:
    """Gives Redis a password until it is started again, and names it for the next command."""
    from shlex import quote

    scheme, _, place = url.partition("://")
    if scheme == "unix":
        return (
            f"redis-cli -s {quote(place)} CONFIG SET requirepass PASSWORD",
            f"export REDIS_URL=unix://default:PASSWORD@{quote(place)}",
        )
    return (
        f"redis-cli -u {quote(url)} CONFIG SET requirepass PASSWORD",
        f"export REDIS_URL={scheme}://default:PASSWORD@{quote(place)}",
    )


def record(path: str, url: str) -> None:
    """Append the section for this Redis to the policy file, which keeps all that it says. Raises ConfigError.

    Written whole or not at all, with mode 0600. A symlink stays one: the file that it leads to is replaced.
    """
    real = os.path.realpath(path)
    text = read_text(path, False) or ""
    end = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    extended = f"{text}{end}{_header(url)}\nopen-redis = true\n"
    before, after = parse_policy(text, path), parse_policy(extended, path)
    added = after.servers[len(before.servers) :]
    is_ours = [(server.url, server.open_redis) for server in added] == [(url, True)]
    if len(extended.encode()) > FILE_MAX_BYTES or after.workers != before.workers or not is_ours:
        raise ConfigError(f"the policy file {path} cannot be extended by the section {_header(url)}")
    try:
        os.makedirs(os.path.dirname(real), mode=0o700, exist_ok=True)
        write_whole(real, extended.encode())
    except OSError as error:
        raise ConfigError(f"the policy file {path} cannot be written: {error.strerror}") from error


def _header(url: str) -> str:
    """A JSON string is a string of TOML, too, apart from DEL."""
    quoted = json.dumps(url, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[redis.{quoted}]"
