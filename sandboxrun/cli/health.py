"""sandboxrun health: for probes, so it asks no Redis and imports little."""

from __future__ import annotations

import os
import sys
import time

from sandboxrun.fleet.problems import Problem, healthy, last_end, problems
from sandboxrun.fleet.status import AgentStatus, WorkerStatus, read_json
from sandboxrun.fleet.units import age
from sandboxrun.host import statuses
from sandboxrun.host.folders import Folders
from sandboxrun.log import escape, shown_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UNHEALTHY = 1
RECORD_MAX_BYTES = 16 << 20
WRONG = ("stuck", "failing", "waiting", "stopped")  # states of a worker that does not work
_EPILOG = """\
examples:
  sandboxrun health                    the agents of this user on this host
  sandboxrun health demo-worker 1      one worker, of an agent or of sandboxrun demo-worker 1
  sandboxrun health --json

An agent is healthy if it answers, and if at least one worker runs, or none is meant to (none ordered, or all stopped). It
stays healthy while Redis is away or some workers fail, because a restart would end the others. Problems are printed in any
case. A worker is healthy if it runs and is not stuck.

exit codes:
  0 healthy   1 not healthy
"""


def main(args: list[str]) -> int:
    if _is_plain(args):
        type_, id_ = args or (None, None)
        as_json = False
    else:
        type_, id_, as_json = _parsed(args)
    folders = Folders.of_user()
    agents = list(statuses.read_all(folders.agents))
    if type_ is not None and id_ is not None:
        return _worker(folders, agents, type_, id_, as_json=as_json)
    return _agents(agents, as_json=as_json)


def _is_plain(args: list[str]) -> bool:
    """What a probe says, which needs no parser. If there is one, somebody else asks for it (cli.parser.captured)."""
    plain = not args or (len(args) == 2 and not any(arg.startswith("-") for arg in args))
    return plain and "sandboxrun.cli.parser" not in sys.modules


def _parsed(args: list[str]) -> tuple[str | None, str | None, bool]:
    from sandboxrun.cli.mistakes import again_hint
    from sandboxrun.cli.parser import Parser
    from sandboxrun.config import keys
    from sandboxrun.errors import UsageError

    parser = Parser(
        prog="sandboxrun health",
        usage="sandboxrun health [options] [TYPE ID]",
        description="Say whether the agents of this host work, or one worker, without asking Redis.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE", nargs="?")
    parser.add_argument("id", metavar="ID", nargs="?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)
    if options.type is not None:
        keys.check_type(options.type)
        if options.id is None:
            raise UsageError("ID is missing", hint=again_hint(parser, [*args, "ID"]))
        keys.check_id(options.id)
    return options.type, options.id, options.json


def _agents(agents: list[tuple[int, AgentStatus | str]], *, as_json: bool) -> int:
    found = [_agent(pid, status) for pid, status in agents]
    good = bool(found) and all(each["healthy"] for each in found)
    if as_json:
        _print_json({"healthy": good, "agents": found})
        return 0 if good else UNHEALTHY
    for each in found:
        print(escape(f"agent {each['pid']}: {each['text']}"))
        _print_problems(each["problems"])
    if not found:
        print("no agent of this user runs on this host")
        print(shown_hint(("sandboxrun agent",)))
    return 0 if good else UNHEALTHY


def _agent(pid: int, status: AgentStatus | str) -> dict[str, Any]:
    if isinstance(status, str):
        return {"pid": pid, "healthy": False, "text": status, "problems": []}
    wanted = [worker for worker in status.workers if worker.state != "stopped"]
    running, stopped = sum(worker.state == "running" for worker in wanted), len(status.workers) - len(wanted)
    text = f"{running} of {len(wanted)} worker{'s' * (len(wanted) != 1)} run{'s' * (len(wanted) == 1)}"
    if not wanted:
        text = "no workers: none is ordered"
    text += f", {stopped} {'is' if stopped == 1 else 'are'} stopped" if stopped else ""
    found = problems(status, clock=time.monotonic(), now=time.time())
    return {"pid": pid, "healthy": healthy(status), "text": text, "problems": list(map(_problem, found))}


def _problem(problem: Problem) -> dict[str, Any]:
    return {"kind": problem.kind, "fails": problem.fails, "text": problem.text, "hint": problem.hint}


def _print_problems(found: list[dict[str, Any]]) -> None:
    for each in found:
        print(escape(f"{'error' if each['fails'] else 'note'}: {each['text']}"))
        hint = shown_hint((each["hint"],)) if each["hint"] else ""
        if hint:
            print(hint)


def _worker(
    folders: Folders, agents: list[tuple[int, AgentStatus | str]], type_: str, id_: str, *, as_json: bool
) -> int:
    statuses_ = (status for _, status in agents if not isinstance(status, str))
    named = (worker for status in statuses_ for worker in status.workers if (worker.type, worker.id) == (type_, id_))
    worker = next(named, None)
    good, text = _of_agent(worker) if worker is not None else _of_run(folders, type_, id_)
    if as_json:
        _print_json({"healthy": good, "type": type_, "id": id_, "text": text})
    else:
        print(escape(f"{type_} {id_} {text}"))
    return 0 if good else UNHEALTHY


def _of_agent(worker: WorkerStatus) -> tuple[bool, str]:
    state, health = worker.state, worker.health
    if state in ("failing", "waiting") or (state == "stopped" and worker.last_exit is not None):
        return False, f"is {state}: {last_end(worker)}"
    words = [f"is {state}"]
    if worker.since is not None:
        words.append(f"for {age(time.time() - worker.since)}")
    if health is not None:
        words[-1] += f", and has handled {health.handled} request{'s' * (health.handled != 1)}"
        if health.handling_since:
            words.append(f"and one for {age(time.monotonic() - health.handling_since)} now")
    return state not in WRONG, " ".join(words)


def _of_run(folders: Folders, type_: str, id_: str) -> tuple[bool, str]:
    """Of a worker without an agent: whether its supervisor lives, which ends with it."""
    from sandboxrun.config import keys
    from sandboxrun.files import read_at_most
    from sandboxrun.redis.lease import start_time, this_host

    path = os.path.join(folders.runs, f"{keys.check_type(type_)}:{keys.check_id(id_)}.json")
    data = read_at_most(path, RECORD_MAX_BYTES)
    if data is None:
        return False, "has not run on this host, as this user"
    try:
        supervisor = read_json(data)["supervisor"]
        pid, started, host = supervisor["pid"], supervisor["started"], supervisor["host"]
    except (ValueError, KeyError, TypeError):
        return False, f"has a record that says nothing of its supervisor: {path}"
    if host == this_host() and isinstance(pid, int) and start_time(pid) == started:
        ticks = os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", encoding="ascii") as file:
            passed = float(file.read().split()[0]) - started / ticks
        return True, f"is running for {age(passed)}"
    return False, f"does not run{_ended(folders, type_, id_)}"


def _ended(folders: Folders, type_: str, id_: str) -> str:
    """How its last run ended, from its log."""
    from sandboxrun.host import logs

    try:
        ends = [line for line in logs.read(folders.log(type_, id_)) if line.kind == logs.END]
    except OSError:
        return ""
    return f": it ended {age(time.time() - ends[-1].at / 1000)} ago with exit code {ends[-1].text[:8]}" if ends else ""


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value))
