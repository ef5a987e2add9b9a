"""sandboxrun stop."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from typing import Any

from sandboxrun.cli.fleet import known_here
from sandboxrun.cli.mistakes import again_hint
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import DEFAULT_URL, connected
from sandboxrun.config import keys
from sandboxrun.errors import StoreError, UsageError
from sandboxrun.fleet import desired
from sandboxrun.fleet import workers as fleet
from sandboxrun.fleet.workers import State
from sandboxrun.host import logs as runlogs
from sandboxrun.host import stop as stopping
from sandboxrun.host import usage
from sandboxrun.host.folders import Folders
from sandboxrun.host.stop import End, Stopped
from sandboxrun.log import escape
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.lease import LEASE_SECONDS, start_time, this_host
from sandboxrun.redis.store import Store
from sandboxrun.sandbox.supervisor import group
from sandboxrun.sandbox.supervisor.supervisor import GRACE_SECONDS

TIMEOUT_SECONDS = 10.0  # a supervisor takes 0.5 to see it, and its worker at most 5 to end
LAST_WORDS_SECONDS, LAST_WORDS_TRIES = 0.05, 20
_EPILOG = f"""\
examples:
  sandboxrun stop demo-worker 1
  sandboxrun stop demo-worker 1 2 3 --timeout 30
  sandboxrun stop demo-worker --all        all workers of the type, on all hosts
  sandboxrun stop --stale                  clean up after killed workers; of one type: stop TYPE --stale

stop removes the field pid of the hash, so it works for workers on any host. The worker's supervisor then sends the worker
SIGTERM, and SIGKILL 5 s later; other workers take the requests that it has not begun. stop never kills a process by its
number: if the process is gone, or if another host has not renewed the pid for {LEASE_SECONDS} s, stop only removes the pid.
Agents do not start a stopped worker again until sandboxrun start TYPE ID. If a service manager such as systemd would restart
the worker, stop the service instead.

exit codes:
  0 all have ended, or did not run   75 one has not ended in time, or Redis is away   78 there is no such hash
"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    _check(parser, options, args)
    with connected(options.redis) as connection:
        if options.ids:
            workers = [(options.type, keys.check_id(id_)) for id_ in dict.fromkeys(options.ids)]
        else:
            workers = _wanted(connection, options.type, stale=options.stale)
        if not workers and not options.json:
            of = f" of type {options.type}" if options.type else ""
            print(f"no worker{of} {'has left a pid behind' if options.stale else 'runs'}")
        outcomes, begun = [], int(time.time() * 1000)
        for outcome in stopping.stop(connection, workers, timeout=options.timeout, only_stale=options.stale):
            code = _exit_code(outcome, begun)
            outcomes.append(as_json(outcome, code))
            if not options.json:
                print(escape(said(outcome, code)), flush=True)
    users = _remove_users(options.redis) if options.stale and options.type is None else 0
    if options.json:
        print(json.dumps({"workers": outcomes, "redis_users_removed": users}))
    elif users:
        print(f"removed {users} Redis user{'s' * (users != 1)} of killed runs")
    return StoreError.exit_code if any(outcome["end"] == End.STILL for outcome in outcomes) else 0


def _parser() -> Parser:
    parser = Parser(
        prog="sandboxrun stop",
        usage="sandboxrun stop [options] TYPE ID [ID …] | TYPE --all | [TYPE] --stale",
        description="End workers gently, on whatever host they run, and print how they ended.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE", nargs="?")
    parser.add_argument("ids", metavar="ID", nargs="*")
    parser.add_argument("--all", action="store_true", help="end all running workers of the type")
    parser.add_argument("--stale", action="store_true", help="end no worker; only clean up after killed workers")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=TIMEOUT_SECONDS,
        help=f"how long to wait (default: {TIMEOUT_SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    connect_option(parser)
    return parser


def _check(parser: Parser, options: argparse.Namespace, args: list[str]) -> None:
    """Raise UsageError, or ConfigError for a name that is not valid."""
    if options.type is None and not options.stale:
        raise UsageError("TYPE and ID are missing", hint=again_hint(parser, [*args, "TYPE", "ID"]))
    if options.type is not None:
        keys.check_type(options.type)
        if not options.ids and not (options.all or options.stale):
            raise UsageError("ID is missing", hint=again_hint(parser, [*args, "ID"]))
        if options.ids and (options.all or options.stale):
            flag = "--all" if options.all else "--stale"
            raise UsageError(
                f"IDs and {flag} exclude each other",
                hint=again_hint(parser, [word for word in args if word != flag]),
            )
    if not 0 <= options.timeout <= 86400:
        raise UsageError(f"--timeout is {options.timeout:g}: expected seconds from 0 to 86400")


def as_json(outcome: Stopped, code: int | None) -> dict[str, Any]:
    """For --json: names and numbers, and the text for people."""
    pid = outcome.held["pid"] or ""
    return {
        "type": outcome.type,
        "id": outcome.id,
        "end": outcome.end.value,
        "host": outcome.held["pidName"],
        "pid": int(pid) if pid.isascii() and pid.isdigit() and len(pid) < 11 else None,
        "seconds": round(outcome.seconds, 1),
        "exit_code": code,
        "text": said(outcome, code),
    }


def _remove_users(url: str | None) -> int:
    """Remove the Redis users that the next start would remove too, and count them; a login without the right removes none."""
    pid = os.getpid()
    ours = Owner.of_run("stop:stale:h", host=this_host(), pid=pid, started=start_time(pid) or 0, now=time.time())
    with (
        contextlib.suppress(StoreError),
        contextlib.closing(Store(url or os.environ.get("REDIS_URL") or DEFAULT_URL)) as store,
    ):
        return len(store.leftover(ours, remove=True))
    return 0


def _wanted(connection: Connection, type_: str | None, *, stale: bool) -> list[tuple[str, str]]:
    """Those that run, or those that are stale."""
    found = fleet.find(connection, type_, known=known_here())
    if found.cut:
        print(escape(f"note: {found.cut}"), file=sys.stderr)
    states = (
        (State.STALE, State.UNKNOWN) if stale else (State.STALE, State.UNKNOWN, State.RUNNING, State.ENDING)
    )  # fmt: skip
    running = [(w.type, w.id) for w in fleet.read(connection, found.workers) if w.state in states]
    ordered = [] if stale or type_ is None else [(type_, id_) for id_ in desired.ordered(connection, type_)]
    return list(dict.fromkeys([*running, *ordered]))


def _exit_code(done: Stopped, begun: int) -> int | None:
    """From the log of this user on this host, if there is one: the supervisor writes its last line a moment later."""
    path = Folders.of_user().log(done.type, done.id)
    for _ in range(LAST_WORDS_TRIES if done.end == End.ENDED and os.path.exists(path) else 0):
        with contextlib.suppress(OSError):
            code = runlogs.last_end(runlogs.read(path), begun)
            if code is not None:
                return code
        time.sleep(LAST_WORDS_SECONDS)
    return None


def said(done: Stopped, code: int | None = None) -> str:
    """One line about how the worker ended, and what to do if it did not."""
    name = f"{done.type} {done.id}"
    pid = (done.held["pid"] or "")[:32]
    here = done.held["pidHost"] in (None, this_host())
    host = "" if here else f" on {done.held['pidName'] or 'another host'}"
    match done.end:
        case End.NOT_RUNNING if done.is_kept:
            return f"{name} does not run, and is not started until: sandboxrun start {name}"
        case End.NOT_RUNNING:
            return f"{name} does not run"
        case End.ENDED:
            reason = "" if code is None else f" with exit code {code}"
            if code == 128 + signal.SIGKILL:
                reason += f": killed because it did not end within {GRACE_SECONDS:g} s"
            return f"{name} has ended{host} (process {pid}), after {done.seconds:.1f} s{reason}"
        case End.RESTARTED:
            return f"{name} has ended{host} (process {pid}), and was started again as process {(done.now['pid'] or '')[:32]}: stop the service that starts it"
        case End.CLEARED if done.before == State.UNKNOWN:
            return f"{name}: removed pid {pid}, which no run of sandboxrun had set and which is no process of this host"
        case End.CLEARED if here:
            return f"{name}: removed the stale pid {pid}, whose process is gone"
        case End.CLEARED:
            return f"{name}: removed the stale pid {pid}{host}, not renewed for {LEASE_SECONDS} s; if it still runs there, it ends once it reaches Redis"
        case _:
            return f"{name} still runs{host} (process {pid}) after {done.seconds:.0f} s: {_how_to_end(done, here)}"


def _how_to_end(done: Stopped, here: bool) -> str:
    pid = done.held["pid"] or ""
    if done.held["pidHost"] is None:
        return "it was started without sandboxrun and does not watch its hash; end it where it was started"
    if here and pid.isdigit():
        left = [str(member) for member in group.living(int(pid)) if member != int(pid)]
        if left and int(pid) not in group.living(int(pid)):
            return (
                f"the worker itself has ended, but processes that it started have not, although they were killed "
                f"({', '.join(left[:10])}); cat /proc/{left[0]}/wchan shows what the first one waits for"
            )
        supervisor = usage.parent(int(pid))
        if supervisor is not None and supervisor > 1:
            return f"its supervisor does not answer; kill -KILL {supervisor} ends both"
    return "wait with a longer --timeout, or end its supervisor there; sandboxrun ps shows it"
