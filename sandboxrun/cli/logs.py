"""sandboxrun logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator

from sandboxrun.cli.mistakes import again_hint
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import connected
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, StoreError, UsageError
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.units import age, size
from sandboxrun.fleet.workers import State
from sandboxrun.host import logs as runlogs
from sandboxrun.host.folders import Folders
from sandboxrun.host.logs import END, ERR, OUT, Follower, Line
from sandboxrun.log import PLAIN, escape
from sandboxrun.sandbox.supervisor.output import Cleaner

POLL_SECONDS = 0.1
FOLLOWED_LINES = 10
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EPILOG = """\
examples:
  sandboxrun logs                           list the workers that have a log
  sandboxrun logs demo-worker 1 -n 50
  sandboxrun logs demo-worker 1 -f          the last 10 lines and all later ones, also after restarts; Ctrl-C ends
  sandboxrun logs demo-worker 1 --json | jq -r 'select(.stream == "err").text'
  sandboxrun logs demo-worker 1 --clear

A log has the last 1 to 2 MiB of a worker that this user ran on this host: the worker's output, and the messages of
sandboxrun, which begin with "sandboxrun:" or their level. A worker can imitate these messages in its output, but not the
field "stream" of --json. A log has everything that the worker prints, even secrets: only the user can read the file
(mode 600), and no worker can. With sandboxrun TYPE ID --no-log there is no log.

exit codes:
  0 shown   78 there is no log
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun logs",
        usage="sandboxrun logs [options] [TYPE ID]",
        description="Show what a worker printed on this host, and what sandboxrun said about it.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE", nargs="?")
    parser.add_argument("id", metavar="ID", nargs="?")
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more lines")
    parser.add_argument("-n", "--lines", metavar="LINES", type=int, help="show only the last LINES lines")
    parser.add_argument("-t", "--timestamps", action="store_true", help="print the time in front of each line")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.add_argument("--clear", action="store_true", help="remove the log")
    connect_option(parser)
    options = parser.parse_args(args)
    folders = Folders.of_user()
    if options.type is None:
        return _list(folders.logs)
    if options.id is None:
        raise UsageError("ID is missing", hint=again_hint(parser, [*args, "ID"]))
    if options.lines is not None and options.lines < 0:
        raise UsageError(f"--lines is {options.lines}: expected 0 or more")
    path = folders.log(keys.check_type(options.type), keys.check_id(options.id))
    if options.clear:
        return _clear(path, f"{options.type} {options.id}")
    if not (options.follow or os.path.lexists(path) or os.path.lexists(f"{path}.1")):
        raise _no_log(options.type, options.id, options.redis)
    show = _Show(as_json=options.json, timestamps=options.timestamps)
    try:
        for line in _wanted(path, options.lines, follow=options.follow):
            show(line)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigError(f"the log {path} cannot be read: {error.strerror}") from error
    return 0


def _wanted(path: str, count: int | None, *, follow: bool) -> Iterator[Line]:
    if not follow:
        lines = runlogs.read(path)
        yield from lines[len(lines) - min(count, len(lines)) :] if count is not None else lines
        return
    log = Follower(path)
    lines = list(log.existing())
    count = FOLLOWED_LINES if count is None else count
    yield from lines[len(lines) - min(count, len(lines)) :]
    while True:
        time.sleep(POLL_SECONDS)
        yield from log.more()


class _Show:
    """Prints a line: to a terminal without control characters, elsewhere the worker's bytes unchanged."""

    def __init__(self, *, as_json: bool, timestamps: bool) -> None:
        self._json, self._timestamps = as_json, timestamps
        self._terminal = os.isatty(1)

    def __call__(self, line: Line) -> None:
        if self._json:
            ours = line.kind not in (OUT, ERR)
            record = {"time": line.at / 1000, "stream": "sandboxrun" if ours else line.kind}
            record |= {"level": "info" if line.kind == END else line.kind} if ours else {}
            record |= {"exit_code": int(line.text)} if line.kind == END and line.text.isdigit() else {}
            print(json.dumps({**record, "text": _said(line) if ours else line.text}), flush=True)
            return
        stamp = f"{_time(line.at)}  ".encode() if self._timestamps else b""
        data = self._bytes(line)
        sys.stdout.buffer.write(stamp + data + b"\n")
        sys.stdout.buffer.flush()

    def _bytes(self, line: Line) -> bytes:
        if line.kind not in (OUT, ERR):
            return (PLAIN * self._terminal + escape(_said(line))).encode()
        if not self._terminal:
            return line.data
        clean = Cleaner()
        return clean(line.data) + clean(b"")  # which ends its colours too


def _said(line: Line) -> str:
    """A message of sandboxrun as it was printed."""
    if line.kind == END:
        return f"sandboxrun: ended with exit code {line.text}"
    return {"info": "sandboxrun: ", "denied": ""}.get(line.kind, f"{line.kind}: ") + line.text


def _time(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at / 1000)) + f".{at % 1000:03}"


def _list(folder: str) -> int:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if name.endswith(".log"):
                with contextlib.suppress(FileNotFoundError):
                    about = os.stat(os.path.join(folder, name))
                    found.append((name.removesuffix(".log").replace(":", " "), about))
    for name, about in found:
        print(escape(f"{name:<24} {size(about.st_size):>9}  {age(time.time() - about.st_mtime)} ago"))
    print(f"{len(found)} logs in {folder}", file=sys.stderr)
    return 0


def _clear(path: str, name: str) -> int:
    count = 0
    for each in (path, f"{path}.1"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(each)
            count += 1
    print(f"removed the log of {name}" if count else f"{name} has no log")
    return 0


def _no_log(type_: str, id_: str, url: str | None) -> ConfigError:
    """Why there is nothing to show: the worker may run on another host."""
    text = f"{type_} {id_} has no log of this user on this host"
    try:
        with connected(url) as connection:
            worker = fleet.read(connection, [(type_, id_)])[0]
    except StoreError as error:
        return ConfigError(f"{text}, and where it runs is unknown: {error}", hint=error.hint)
    if worker.state == State.RUNNING and not worker.here:
        host = (worker.held["pidName"] or "HOST")[:64]
        # The hash says it: ssh would take a name that begins with - for an option, which may name a command to run.
        hint = f"ssh {host} sandboxrun logs {type_} {id_}" if _HOST.fullmatch(host) else ""
        return ConfigError(f"{text}: it runs on {host}", hint=hint)
    if worker.state == State.RUNNING:
        return ConfigError(
            f"{text}: another user runs it, or it was started with --no-log",
            hint=f"sandboxrun stop {type_} {id_} && sandboxrun {type_} {id_}",
        )
    return ConfigError(f"{text}: it has not run yet, or only with --no-log", hint=f"sandboxrun {type_} {id_}")
