"""sandboxrun stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from sandboxrun.cli.fleet import known_here
from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.cli.redis import DEFAULT_URL, connected
from sandboxrun.config import keys
from sandboxrun.errors import StoreError, UsageError
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
  sandboxrun stop demo-worker --all        every one of the type, on all hosts
  sandboxrun stop --stale                  clear what killed workers have left; of one type: stop TYPE --stale

It removes field pid of the hash, as HDEL does, so that it works for workers of any host. The worker's supervisor sends it
SIGTERM, and SIGKILL 5 s later; requests that it had not begun go to others. Nothing is killed by its number: a pid whose
process is gone, or that another host has not renewed for {LEASE_SECONDS} s, is only removed. What starts workers again,
systemd for instance, does so after this too: stop it there.

exit codes:
  0 all have ended, or did not run   75 one has not ended in time, or Redis is away   78 there is no such hash
"""


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun stop",
        usage="sandboxrun stop [options] TYPE ID [ID …] | TYPE --all | [TYPE] --stale",
        description="End workers gently, on whatever host they run, and say how they ended.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE", nargs="?")
    parser.add_argument("ids", metavar="ID", nargs="*")
    parser.add_argument("--all", action="store_true", help="all of the type that run")
    parser.add_argument("--stale", action="store_true", help="only clear what dead workers have left; end none")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=TIMEOUT_SECONDS, help="how long to wait at most (10)"
    )
    connect_option(parser)
    options = parser.parse_args(args)
    if options.type is None and not options.stale:
        raise UsageError("stop needs TYPE and ID, or TYPE --all, or --stale; sandboxrun ps shows what runs")
    if options.type is not None and bool(options.ids) == (options.all or options.stale):
        raise UsageError("stop takes either IDs, or --all, or --stale; see sandboxrun stop --help")
    if not 0 <= options.timeout <= 86400:
        raise UsageError(f"--timeout is {options.timeout:g}: expected seconds, from 0 to 86400")
    if options.type is not None:
        keys.check_type(options.type)
    with connected(options.redis) as connection:
        if options.ids:
            workers = [(options.type, keys.check_id(id_)) for id_ in dict.fromkeys(options.ids)]
        else:
            workers = _wanted(connection, options.type, stale=options.stale)
        if not workers:
            of = f" of type {options.type}" if options.type else ""
            print(f"no worker{of} {'has left a pid behind' if options.stale else 'runs'}")
        still, begun = 0, int(time.time() * 1000)
        for done in stopping.stop(connection, workers, timeout=options.timeout, only_stale=options.stale):
            still += done.end == End.STILL
            print(escape(said(done, _exit_code(done, begun))), flush=True)
    if options.stale and options.type is None:
        _remove_users(options.redis)
    return StoreError.exit_code if still else 0


def _remove_users(url: str | None) -> None:
    """What the next start would remove too. A login that may not manage users has none to remove."""
    pid = os.getpid()
    ours = Owner.of_run("stop:stale:h", host=this_host(), pid=pid, started=start_time(pid) or 0, now=time.time())
    with (
        contextlib.suppress(StoreError),
        contextlib.closing(Store(url or os.environ.get("REDIS_URL") or DEFAULT_URL)) as store,
    ):
        removed = store.leftover(ours, remove=True)
        if removed:
            print(f"removed {len(removed)} Redis users of killed runs")


def _wanted(connection: Connection, type_: str | None, *, stale: bool) -> list[tuple[str, str]]:
    """Those that run, or those that are stale."""
    found = fleet.find(connection, type_, known=known_here())
    if found.cut:
        print(escape(f"note: {found.cut}"), file=sys.stderr)
    states = (
        (State.STALE, State.UNKNOWN) if stale else (State.STALE, State.UNKNOWN, State.RUNNING, State.ENDING)
    )  # fmt: skip
    return [(w.type, w.id) for w in fleet.read(connection, found.workers) if w.state in states]


def _exit_code(done: Stopped, begun: int) -> int | None:
    """From the log of this user on this host, where there is one: the supervisor's last words come within a moment."""
    path = Folders.of_user().log(done.type, done.id)
    for _ in range(LAST_WORDS_TRIES if done.end == End.ENDED and os.path.exists(path) else 0):
        with contextlib.suppress(OSError):
            code = runlogs.last_end(runlogs.read(path), begun)
            if code is not None:
                return code
        time.sleep(LAST_WORDS_SECONDS)
    return None


def said(done: Stopped, code: int | None = None) -> str:
    """One line about how it went, and what to do where it did not."""
    name = f"{done.type} {done.id}"
    pid = (done.held["pid"] or "")[:32]
    here = done.held["pidHost"] in (None, this_host())
    host = "" if here else f" on {done.held['pidName'] or 'another host'}"
    match done.end:
        case End.NOT_RUNNING:
            return f"{name} does not run"
        case End.ENDED:
            how = "" if code is None else f" with exit code {code}"
            how += f": killed, for it did not end within {GRACE_SECONDS:g} s" if code == 128 + signal.SIGKILL else ""
            return f"{name} has ended{host} (process {pid}), after {done.seconds:.1f} s{how}"
        case End.RESTARTED:
            return f"{name} has ended{host} (process {pid}), and was started again as process {(done.now['pid'] or '')[:32]}: stop what starts it"
        case End.CLEARED if done.before == State.UNKNOWN:
            return f"{name}: removed pid {pid}, set by a worker without sandboxrun and no process of this host; one elsewhere that looks at its hash ends"
        case End.CLEARED if here:
            return f"{name}: removed the stale pid {pid}, whose process is gone"
        case End.CLEARED:
            return f"{name}: removed the stale pid {pid}{host}, not renewed for {LEASE_SECONDS} s; if it still runs there, it ends once it reaches Redis"
        case _:
            return f"{name} still runs{host} (process {pid}) after {done.seconds:.0f} s: {_how_to_end(done, here)}"


def _how_to_end(done: Stopped, here: bool) -> str:
    pid = done.held["pid"] or ""
    if done.held["pidHost"] is None:
        return "it was started without sandboxrun, and does not look at its hash; end it where it was started"
    if here and pid.isdigit():
        left = [str(member) for member in group.living(int(pid)) if member != int(pid)]
        if left and int(pid) not in group.living(int(pid)):
            return (
                f"the worker itself has ended, and processes that it has started have not, though they were killed "
                f"({', '.join(left[:10])}): look at what they wait for, cat /proc/{left[0]}/wchan"
            )
        supervisor = usage.parent(int(pid))
        if supervisor is not None and supervisor > 1:
            return f"its supervisor does not answer; kill -KILL {supervisor} ends both"
    return "wait with a longer --timeout, or end its supervisor there; sandboxrun ps shows it"
