"""What is wrong on an agent, the worst first, each with the command that helps. Pure."""

from __future__ import annotations

from sandboxrun.fleet.status import AgentStatus, TypeStatus, WorkerStatus
from sandboxrun.fleet.units import age
from sandboxrun.log import LINE_MAX_CHARS
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

WAITING_SECONDS = 30.0  # a request that waits for so long is a problem
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@")  # for a shell
REFUSED = 77  # PolicyError's exit code
NAMES_MAX = 3  # workers that one line names


@record
class Problem:
    """`fails`: a worker or the agent does not do its work; else something to know. `text` has what others wrote in it."""

    kind: str
    fails: bool
    text: str
    hint: str = ""


def problems(status: AgentStatus, *, clock: float, now: float) -> list[Problem]:
    """`clock`: CLOCK_MONOTONIC; `now`: Unix time."""
    workers = status.workers
    found = [*_away(status), *_stuck(workers, clock), *_failing(workers, now)]
    for each in status.types:
        found += _of_type(each, status)
    return [*sorted(found, key=lambda problem: not problem.fails), *_denials(workers)]


def healthy(status: AgentStatus) -> bool:
    """Whether a probe should leave the agent alone: some worker works, or none has to.

    One worker that fails is no reason to restart the others, and an outage of Redis none to restart any.
    """
    states = {worker.state for worker in status.workers}
    return not states & {"stuck", "failing"} or bool(states & {"running", "starting", "ending"})


def _away(status: AgentStatus) -> Iterator[Problem]:
    if not status.redis_up:
        yield Problem(
            "redis",
            True,
            f"Redis at {status.redis} cannot be reached",
            _line("doctor", "--redis", status.redis),
        )
    if status.draining:
        yield Problem("draining", False, f"agent {status.name} is draining: it takes no new worker")


def _stuck(workers: tuple[WorkerStatus, ...], clock: float) -> Iterator[Problem]:
    stuck = [worker for worker in workers if worker.state == "stuck"]
    if stuck:
        first = stuck[0]
        names = f"{first.name} " if len(stuck) == 1 else f"{_named(stuck)}; {first.name} "
        text = f"{_are(stuck, 'stuck')}: {names}{_handling(first, clock)}"
        yield Problem("stuck", True, text, _restart(first))


def _failing(workers: tuple[WorkerStatus, ...], now: float) -> Iterator[Problem]:
    failing = [worker for worker in workers if worker.state == "failing"]
    if failing:
        first = failing[0]
        reason = f": {last_end(first)}" if len(failing) == 1 else f"; {first.name}: {last_end(first)}"
        yield Problem(
            "failing", True, f"{_are(failing, 'failing')}: {_named(failing)}{reason}{_again(first, now)}", _logs(first)
        )
    waiting = [worker for worker in workers if worker.state == "waiting" and worker.next_start is None]
    if waiting:
        first = waiting[0]
        verb = "waits" if len(waiting) == 1 else "wait"
        yield Problem(
            "waiting",
            True,
            f"{_count(waiting)} {verb} for a change of hash or policy: {_named(waiting)}: {last_end(first)}",
            _line("approve" if first.last_exit == REFUSED else "show", first.type, first.id),
        )


def _of_type(each: TypeStatus, status: AgentStatus) -> Iterator[Problem]:
    if each.waiting_ids and not status.draining:
        ids = "1 worker waits" if each.waiting_ids == 1 else f"{each.waiting_ids} workers wait"
        yield Problem("unplaced", True, f"{ids} for an agent with room: {each.type}", "sandboxrun doctor")
    if each.oldest_waiting is not None and each.oldest_waiting >= WAITING_SECONDS:
        yield Problem(
            "backlog",
            True,
            f"a request to {each.type} has waited for {age(each.oldest_waiting)}",
            _line("info", each.type),
        )
    if each.dead:
        letters = "1 dead letter" if each.dead == 1 else f"{each.dead} dead letters"
        yield Problem("dead", False, f"{each.type} has {letters}", _line("dead", each.type))


def _denials(workers: tuple[WorkerStatus, ...]) -> Iterator[Problem]:
    denied = [worker for worker in workers if worker.denials]
    if denied:
        first = denied[0].denials[0]
        what = f"{first.kind} access to {first.target[:80]}"
        yield Problem(
            "denied",
            False,
            f"{_are(denied, 'refused something', verb=('was', 'were'))}: {_named(denied)}: {what}",
            grant_command(denied[0], first.kind, first.grant),
        )


def grant_command(worker: WorkerStatus, kind: str, grant: str) -> str:
    """The command that says whether this may be granted, and prints the one that grants it; "" if it cannot be pasted."""
    flag = "--redis-keys" if kind == "redis" else f"--{kind}"
    grant = grant.removeprefix(f"allow{kind.title()}=")
    return (
        _line("perms", worker.type, worker.id, *((f"{flag}={grant}",) if grant.startswith("-") else (flag, grant)))
        if grant
        else ""
    )


def _line(*words: str) -> str:
    """A command of sandboxrun, or "" if it cannot be shown as it is: escaped it would be another one."""
    if all(word and _SAFE.issuperset(word) for word in words):  # as types and ids are; shlex imports re
        line = " ".join(("sandboxrun", *words))
    else:
        import shlex

        line = shlex.join(("sandboxrun", *words))
    return line if line.isprintable() and len(line) <= LINE_MAX_CHARS else ""


def last_end(worker: WorkerStatus) -> str:
    """Why its last run ended."""
    code = "" if worker.last_exit is None else f"exit code {worker.last_exit}"
    return ", ".join(filter(None, (code, worker.last_reason))) or "it ended"


def _handling(worker: WorkerStatus, clock: float) -> str:
    since = worker.health.handling_since if worker.health is not None else 0.0
    return f"has handled one request for {age(clock - since)}" if since else "does not answer"


def _again(worker: WorkerStatus, now: float) -> str:
    return f"; next start in {age(worker.next_start - now)}" if worker.next_start is not None else ""


def _count(workers: list[WorkerStatus]) -> str:
    return "1 worker" if len(workers) == 1 else f"{len(workers)} workers"


def _are(workers: list[WorkerStatus], what: str, *, verb: tuple[str, str] = ("is", "are")) -> str:
    return f"{_count(workers)} {verb[len(workers) != 1]} {what}"


def _named(workers: list[WorkerStatus]) -> str:
    names = ", ".join(worker.name for worker in workers[:NAMES_MAX])
    return names + (f" and {len(workers) - NAMES_MAX} more" if len(workers) > NAMES_MAX else "")


def _logs(worker: WorkerStatus) -> str:
    return _line("logs", worker.type, worker.id, "-n", "50")


def _restart(worker: WorkerStatus) -> str:
    """`stop` keeps a worker of an agent stopped, until `start`."""
    stop, start = (_line(command, worker.type, worker.id) for command in ("stop", "start"))
    return f"{stop} && {start}" if stop and start else ""
