"""What an agent knows, in Prometheus' text format 0.0.4 or as OpenMetrics 1.0. Pure, but for the file of node_exporter.

The sources are the specifications: prometheus.io/docs/instrumenting/exposition_formats and openmetrics.io.
Every series belongs to a worker or a type of the agent, and ends with it: nothing is kept here. The labels besides `type`
and `id` have few values, so that neither a reply's code nor an exception's text makes new series.
"""

from __future__ import annotations

from sandboxrun.config.permissions import Kind
from sandboxrun.files import write_whole
from sandboxrun.fleet.status import NUMBER_MAX, AgentStatus, WorkerStatus
from sandboxrun.health import Histogram
from sandboxrun.healthpage import BOUNDS
from sandboxrun.log import escape
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
OTHER = "other"
CODES = frozenset((200, 201, 202, 204, 400, 401, 403, 404, 408, 409, 410, 413, 422, 429, 500, 501, 502, 503, 504))
REASONS = frozenset("asked change ended failed lease outage signal stuck".split())  # of host/restarts.py
LABEL_MAX_CHARS = 128

if TYPE_CHECKING:
    Sample = tuple[str, tuple[tuple[str, str], ...], float]  # a suffix of the name, labels, value


@record
class Metric:
    """One family. `samples` makes them from the status; `kind`: counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: Callable[[AgentStatus, float], Iterator[Sample]]


def render(status: AgentStatus, *, clock: float, openmetrics: bool = False) -> str:
    """`clock`: CLOCK_MONOTONIC."""
    lines = []
    for metric in METRICS:
        counter = metric.kind == "counter"
        family = metric.name + ("_total" if counter and not openmetrics else "")
        lines += [f"# HELP {family} {metric.help}", f"# TYPE {family} {metric.kind}"]
        for suffix, labels, value in metric.samples(status, clock):
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{metric.name}{suffix}{f'{{{shown}}}' if shown else ''} {_number(value)}")
    return "\n".join([*lines, *["# EOF"] * openmetrics, ""])


def is_openmetrics(accept: str) -> bool:
    """Whether a scraper prefers it: Prometheus names both, and gives each its weight."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        weight = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        try:
            weights[name] = max(weights.get(name, 0.0), float(weight))
        except ValueError:
            continue
    text = max(weights.get("text/plain", 0.0), weights.get("text/*", 0.0), weights.get("*/*", 0.0))
    return weights.get("application/openmetrics-text", 0.0) > text


def write_textfile(path: str, status: AgentStatus, *, clock: float) -> None:
    """For node_exporter's textfile collector, which reads FOLDER/*.prom at any time. Raises OSError."""
    write_whole(path, render(status, clock=clock).encode(), mode=0o644, sync=False)


def _escaped(text: str) -> str:
    """Of a label's value: what is not printable first, so that no two series differ in what nobody sees."""
    shown = escape(text)[:LABEL_MAX_CHARS]
    return shown.replace("\\", "\\\\").replace('"', '\\"')


def _number(value: float) -> str:
    if not abs(value) < NUMBER_MAX:  # as NaN is not
        return "0"
    return str(int(value)) if value == int(value) else repr(float(value))


def _of(worker: WorkerStatus) -> tuple[tuple[str, str], ...]:
    return (("type", worker.type), ("id", worker.id))


def _up(status: AgentStatus, _: float) -> Iterator[Sample]:
    for worker in status.workers:
        if worker.state != "stopped":
            yield "", _of(worker), float(worker.state == "running")


def _requests(status: AgentStatus, _: float) -> Iterator[Sample]:
    for worker in status.workers:
        codes = worker.health.codes if worker.health is not None else ()
        yield from _counts(worker, "code", ((str(code) if code in CODES else OTHER, n) for code, n in codes))


def _denials(status: AgentStatus, _: float) -> Iterator[Sample]:
    kinds = frozenset(str(kind) for kind in Kind)
    for worker in status.workers:
        pairs = ((each.kind if each.kind in kinds else OTHER, each.count) for each in worker.denials)
        yield from _counts(worker, "kind", pairs)


def _restarts(status: AgentStatus, _: float) -> Iterator[Sample]:
    for worker in status.workers:
        pairs = ((reason if reason in REASONS else OTHER, count) for reason, count in worker.restarts_by)
        yield from _counts(worker, "reason", pairs)


def _counts(worker: WorkerStatus, label: str, pairs: Iterator[tuple[str, int]]) -> Iterator[Sample]:
    """One sample for each value of the label."""
    sums: dict[str, int] = {}
    for value, count in pairs:
        sums[value] = sums.get(value, 0) + count
    for value, count in sorted(sums.items()):
        yield "_total", (*_of(worker), (label, value)), count


def _histograms(name: str) -> Callable[[AgentStatus, float], Iterator[Sample]]:
    def samples(status: AgentStatus, _: float) -> Iterator[Sample]:
        for worker in status.workers:
            if worker.health is not None:
                yield from _buckets(worker, getattr(worker.health, name))

    return samples


def _buckets(worker: WorkerStatus, histogram: Histogram) -> Iterator[Sample]:
    total = 0
    for bound, count in zip(BOUNDS, histogram.counts, strict=False):
        total += count
        yield "_bucket", (*_of(worker), ("le", repr(float(bound)))), total
    total += sum(histogram.counts[len(BOUNDS) :])
    yield "_bucket", (*_of(worker), ("le", "+Inf")), total
    yield "_sum", _of(worker), histogram.sum
    yield "_count", _of(worker), total


def _of_type(name: str) -> Callable[[AgentStatus, float], Iterator[Sample]]:
    def samples(status: AgentStatus, _: float) -> Iterator[Sample]:
        for each in status.types:
            value = getattr(each, name)
            if value is not None:
                yield "", (("type", each.type),), value

    return samples


def _leases(status: AgentStatus, _: float) -> Iterator[Sample]:
    for worker in status.workers:
        if worker.lease_age is not None:
            yield "", _of(worker), worker.lease_age


def _redis(status: AgentStatus, _: float) -> Iterator[Sample]:
    yield "", (), float(status.redis_up)


def _build(status: AgentStatus, _: float) -> Iterator[Sample]:
    yield "", (("version", status.version),), 1


METRICS = (
    Metric("sandboxrun_up", "gauge", "1 while the worker runs and is not stuck; stopped workers have none.", _up),
    Metric("sandboxrun_requests", "counter", "Replies of the worker, by code.", _requests),
    Metric("sandboxrun_handler_seconds", "histogram", "How long handlers took.", _histograms("handler")),
    Metric("sandboxrun_wait_seconds", "histogram", "How long requests waited before they were read.", _histograms("wait")),
    Metric("sandboxrun_oldest_waiting_seconds", "gauge", "Age of the oldest request that no worker has read.", _of_type("oldest_waiting")),
    Metric("sandboxrun_oldest_handling_seconds", "gauge", "Age of the oldest request that a worker has read and not answered.", _of_type("oldest_handling")),
    Metric("sandboxrun_lag", "gauge", "Requests that no worker has read.", _of_type("lag")),
    Metric("sandboxrun_pending", "gauge", "Requests that workers have read and not answered.", _of_type("pending")),
    Metric("sandboxrun_dead", "gauge", "Dead letters: requests that were given up.", _of_type("dead")),
    Metric("sandboxrun_denials", "counter", "Acts that the sandbox refused, by kind of permission.", _denials),
    Metric("sandboxrun_restarts", "counter", "Restarts of the worker, by reason.", _restarts),
    Metric("sandboxrun_lease_age_seconds", "gauge", "Time since the worker's pid was renewed in Redis.", _leases),
    Metric("sandboxrun_redis_up", "gauge", "1 while the agent reaches Redis.", _redis),
    Metric("sandboxrun_build_info", "gauge", "1, with the version of sandboxrun.", _build),
)  # fmt: skip
