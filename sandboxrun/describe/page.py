"""The page of an agent, as HTML without a script: what is wrong and the command that helps, then types, workers, denials, ends.

All text of it that comes from Redis, a hash or a worker goes through `_text`: control and bidi characters are shown as escapes,
then it is cut, then escaped for HTML. No payload and no field of a hash besides the version is in a status.
"""

from __future__ import annotations

import html
import threading
import time
from functools import partial

from sandboxrun.describe import metrics
from sandboxrun.describe.style import POLICY, STYLE
from sandboxrun.fleet import status as fleet
from sandboxrun.fleet.problems import Problem, grant_command, healthy, last_end, problems
from sandboxrun.fleet.status import AgentStatus, TypeStatus, WorkerStatus
from sandboxrun.fleet.units import age, duration, size
from sandboxrun.host.page import Reply
from sandboxrun.host.statuses import Cached
from sandboxrun.log import escape
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Rates = Mapping[tuple[str, str], float]
    Route = Callable[[str, Mapping[str, str]], Reply]

REFRESH_SECONDS = 5
STATUS_SECONDS = 1.0  # a status is asked for at most so often, however many read the page
SAMPLES_MAX, SAMPLE_SECONDS = 12, 60.0  # a rate is over the statuses of the last minute
TEXT_MAX_CHARS = 160
DENIALS_MAX = ENDS_MAX = 50  # rows
# Of a state: how it is shown, and how far up.
_STATES = {
    "stuck": ("bad", 0), "failing": ("bad", 1), "waiting": ("odd", 2), "starting": ("odd", 3), "ending": ("odd", 4),
    "running": ("good", 5), "stopped": ("soft", 6),
}  # fmt: skip


class Page:
    """The paths of the agent's server, made from `status`, which is called from several threads.

    Any program of the host may ask as often as it likes, so each reply is made at most once in STATUS_SECONDS."""

    def __init__(self, status: Callable[[], AgentStatus]) -> None:
        self._status, self._lock = status, threading.Lock()
        self._samples: list[tuple[float, AgentStatus]] = []

    def routes(self, *, text: bool = True) -> Mapping[str, Route]:
        """By path. `text`: also what shows text of workers; without it only /metrics and /healthz."""
        plain, other = _cached(partial(self._metrics, False)), _cached(partial(self._metrics, True))
        health = _cached(self._health)
        routes: dict[str, Route] = {
            "/metrics": lambda _, headers: (other if metrics.is_openmetrics(headers.get("accept", "")) else plain)(),
            "/healthz": lambda *_: health(),
        }
        if not text:
            return routes
        page, still, json = _cached(partial(self._page, True)), _cached(partial(self._page, False)), _cached(self._json)
        return routes | {
            "/": lambda query, _: (still if query == "still" else page)(),
            "/status.json": lambda *_: json(),
        }

    def _now(self) -> AgentStatus:
        with self._lock:
            now = time.monotonic()
            if not self._samples or now - self._samples[-1][0] >= STATUS_SECONDS:
                self._samples.append((now, self._status()))
                recent = [sample for sample in self._samples if now - sample[0] < SAMPLE_SECONDS]
                self._samples = recent[-SAMPLES_MAX:]
            return self._samples[-1][1]

    def _rates(self) -> Rates:
        with self._lock:
            (first, before), (last, now) = self._samples[0], self._samples[-1]
        return fleet.rates(before, now, last - first)

    def _page(self, refresh: bool) -> Reply:
        status = self._now()
        body = render(status, self._rates(), clock=time.monotonic(), now=time.time(), refresh=refresh)
        return Reply(body.encode(), "text/html; charset=utf-8", policy=POLICY)

    def _json(self) -> Reply:
        return Reply(fleet.as_json(self._now()), "application/json")

    def _metrics(self, openmetrics: bool) -> Reply:
        body = metrics.render(self._now(), clock=time.monotonic(), openmetrics=openmetrics)
        return Reply(body.encode(), metrics.OPENMETRICS if openmetrics else metrics.TEXT)

    def _health(self) -> Reply:
        status = self._now()
        return Reply(b"healthy\n") if healthy(status) else Reply(b"no worker works\n", code=503)


def _cached(make: Callable[[], Reply]) -> Cached:
    return Cached(make, STATUS_SECONDS)


def render(status: AgentStatus, rates: Rates, *, clock: float, now: float, refresh: bool = True) -> str:
    """`clock`: CLOCK_MONOTONIC; `now`: Unix time."""
    wrong = problems(status, clock=clock, now=now)
    view = _View(status, rates, clock, now)
    failing = sum(problem.fails for problem in wrong)
    title = f"{f'({failing}) ' if failing else ''}sandboxrun on {_plain(status.name)}"
    parts = [
        "<!doctype html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        *([f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'] if refresh else []),
        f"<title>{title}</title>", f"<style>{STYLE}</style>", "<body>",
        *view.header(), *_problems(wrong, status), *view.types(), *view.denials(), *view.ends(), *view.workers(),
        *_footer(now, refresh),
    ]  # fmt: skip
    return "\n".join([*parts, ""])


@record
class _View:
    """The parts of the page. `rates`: requests a second, by type and id."""

    status: AgentStatus
    rates: Rates
    clock: float
    now: float

    def header(self) -> list[str]:
        status = self.status
        count = sum(worker.state != "stopped" for worker in status.workers)
        words = [
            f"{count} of at most {status.most} workers",
            f"Redis {_text(status.redis)}",
            f"up {age(self.now - status.since)}",
        ]
        words += ["draining"] * status.draining
        about = " · ".join([*words, f"sandboxrun {_text(status.version)}"])
        return [f"<header><h1>Agent on {_text(status.name)}</h1><p>{about}</p></header>"]

    def types(self) -> list[str]:
        heads = "Type|n Running|n Requests/s|n p50|n p99|n Errors|n Waiting|n For|n In hand|n For|n Dead letters"
        return [_heading("Types"), *_table(heads, [self._type(each) for each in self.status.types])]

    def _type(self, each: TypeStatus) -> str:
        running = sum(worker.state in ("running", "stuck") for worker in each.workers)
        wanted = "" if each.count is None else f" of {each.count}"
        known = [self.rates[w.type, w.id] for w in each.workers if (w.type, w.id) in self.rates]
        handler = fleet.merged(w.health.handler for w in each.workers if w.health is not None)
        return _row(
            _cell(_text(each.type)), _number(f"{running}{wanted}"), _number(_rate(sum(known) if known else None)),
            _number(_duration(handler.quantile(0.5))), _number(_duration(handler.quantile(0.99))),
            _count(sum(map(fleet.errors, each.workers)), bad=True), _count(each.lag), _number(_duration(each.oldest_waiting)),
            _count(each.pending), _number(_duration(each.oldest_handling)), _count(each.dead, bad=True),
        )  # fmt: skip

    def workers(self) -> list[str]:
        heads = "ID|State|n Since|n Requests/s|n p50|n p99|n Errors|n Handling for|n Restarts|n Memory|n CPU|Version"
        rows = []
        for each in self.status.types:
            count = len(each.workers)
            about = f"<small>{count} worker{'s' * (count != 1)}</small>"
            rows.append(
                f'<tr><th class="type" scope="rowgroup" colspan="{heads.count("|") + 1}">{_text(each.type)} {about}</th></tr>'
            )
            rows += [self._worker(worker) for worker in sorted(each.workers, key=_order)]
        return [_heading("Workers"), *_table(heads, rows)]

    def _worker(self, worker: WorkerStatus) -> str:
        look, health = _STATES[worker.state][0], worker.health
        busy = health.handling_since if health is not None else 0.0
        return _row(
            _cell(_text(worker.id)), _cell(f'<b class="state {look}">{worker.state}</b>'),
            _number(age(self.now - worker.since) if worker.since is not None else ""),
            _number(_rate(self.rates.get((worker.type, worker.id)))),
            _number(_duration(health.handler.quantile(0.5) if health is not None else None)),
            _number(_duration(health.handler.quantile(0.99) if health is not None else None)), _count(fleet.errors(worker), bad=True),
            _number(_duration(self.clock - busy) if busy else ""), _count(worker.restarts),
            _number(size(worker.memory) if worker.memory is not None else "", minor=True),
            _number(f"{worker.cpu:.1f} s" if worker.cpu is not None else "", minor=True),
            _cell(_text(worker.version), "minor"), look=look if look in ("bad",) else "",
        )  # fmt: skip

    def denials(self) -> list[str]:
        found = [(worker, denied) for worker in self.status.workers for denied in worker.denials]
        rows = [
            _row(
                _cell(_text(worker.name)), _cell(_text(denied.kind)), _cell(_text(denied.target), "text"),
                _count(denied.count), _cell(_command(grant_command(worker, denied.kind, denied.grant)) or "no grant helps"),
            )
            for worker, denied in sorted(found, key=lambda pair: -pair[1].count)[:DENIALS_MAX]
        ]  # fmt: skip
        about = "the command says whether the policy allows it, and prints the one that grants it"
        heads = "Worker|Access|Target|n Times|To allow it"
        return [_heading("Refused", about), *_table(heads, rows), *_more(len(found), DENIALS_MAX)] if rows else []

    def ends(self) -> list[str]:
        found = [worker for worker in self.status.workers if worker.restarts or worker.last_reason]
        found.sort(key=lambda worker: (_STATES[worker.state][1], -worker.restarts))
        rows = [
            _row(_cell(_text(w.name)), _count(w.restarts), _cell(_text(last_end(w)), "text"), _number(self._next(w)))
            for w in found[:ENDS_MAX]
        ]
        heads = "Worker|n Restarts|Last end|n Next start"
        return [_heading("Restarts"), *_table(heads, rows), *_more(len(found), ENDS_MAX)] if rows else []

    def _next(self, worker: WorkerStatus) -> str:
        if worker.next_start is not None:
            return f"in {age(worker.next_start - self.now)}"
        return "after a change" if worker.state == "waiting" else ""


def _problems(wrong: Sequence[Problem], status: AgentStatus) -> list[str]:
    """What is wrong, with the command that helps."""
    rows = [(("bad" if each.fails else "odd"), _text(each.text, 300), _command(each.hint)) for each in wrong]
    if not any(each.fails for each in wrong):
        running = sum(worker.state == "running" for worker in status.workers)
        rows = [("good", f"{running} worker{'s' * (running != 1)} run{'s' * (running == 1)}.", ""), *rows]
    items = [f'<li class="{look}">{text}{f"<br>{command}" if command else ""}</li>' for look, text, command in rows]
    return ['<ul class="problems">', *items, "</ul>"]


def _footer(now: float, refresh: bool) -> list[str]:
    at = time.strftime("%H:%M:%S", time.gmtime(now))
    other = (
        f'renewed every {REFRESH_SECONDS} s · <a href="/?still">hold still</a>' if refresh else '<a href="/">renew</a>'
    )
    links = '<a href="/metrics">metrics</a> · <a href="/status.json">status.json</a>'
    return [
        f"<footer>{at} UTC · {other} · {links}<br>p50, p99 and errors count from the start of each worker.</footer>"
    ]


def _text(text: str, most: int = TEXT_MAX_CHARS) -> str:
    """Hostile text for HTML, isolated, because letters that run to the left would reorder what stands beside them."""
    return f"<bdi>{_plain(text, most)}</bdi>"


def _plain(text: str, most: int = TEXT_MAX_CHARS) -> str:
    shown = escape(text[:most])
    return html.escape(shown if max(len(shown), len(text)) <= most else f"{shown[: most - 1]}…")


def _command(command: str) -> str:
    return f"<code>{html.escape(command)}</code>" if command else ""


def _heading(text: str, about: str = "") -> str:
    return f"<h2>{text}{f' <small>{about}</small>' if about else ''}</h2>"


def _table(heads: str, rows: Iterable[str]) -> list[str]:
    """`heads`: names of columns; of numbers if they begin with `n `."""
    minor = ("Memory", "CPU", "Version")
    cells = []
    for name in heads.split("|"):
        word = name.removeprefix("n ")
        classes = " ".join(["n"] * (word != name) + ["minor"] * (word in minor))
        cells.append(f'<th scope="col"{f" class={chr(34)}{classes}{chr(34)}" if classes else ""}>{word}</th>')
    head = f"<thead><tr>{''.join(cells)}</tr></thead>"
    return [f'<div class="wide"><table>{head}', "<tbody>", *rows, "</tbody></table></div>"]


def _row(*cells: str, look: str = "") -> str:
    return f"<tr{f' class={chr(34)}{look}{chr(34)}' if look else ''}>{''.join(cells)}</tr>"


def _cell(content: str, classes: str = "") -> str:
    return f'<td class="{classes}">{content}</td>' if classes else f"<td>{content}</td>"


def _number(text: str, *, minor: bool = False) -> str:
    return _cell(text, "n minor" if minor else "n")


def _count(value: int | None, *, bad: bool = False) -> str:
    if value is None:
        return _cell("", "n")
    return _cell(f"{value:,}".replace(",", "\u202f"), "n zero" if not value else "n bad" if bad else "n")


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _more(count: int, most: int) -> list[str]:
    return [f"<p>and {count - most} more: status.json has them all</p>"] if count > most else []


def _order(worker: WorkerStatus) -> tuple[int, int, str]:
    """The worst first, then by id, numbers by value."""
    number = int(worker.id) if worker.id.isascii() and worker.id.isdigit() and len(worker.id) < 19 else 1 << 62
    return _STATES[worker.state][1], number, worker.id
