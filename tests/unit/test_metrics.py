"""The metrics of an agent, read by the parsers of Prometheus' own client."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import pytest
from agent_status import HEALTH, STATUS, WORKER, with_workers
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from sandboxrun.describe import metrics
from sandboxrun.describe.metrics import METRICS, is_openmetrics, render, write_textfile
from sandboxrun.fleet.status import AgentStatus, Denied
from sandboxrun.records import replace

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series(status: AgentStatus, *, openmetrics: bool = False) -> Series:
    text = render(status, clock=200.0, openmetrics=openmetrics)
    families = (read_openmetrics if openmetrics else read_text)(text)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_series_are_those_of_the_list(openmetrics):
    found = series(STATUS, openmetrics=openmetrics)
    names = {name for name, _ in found}
    assert names == {
        "sandboxrun_up", "sandboxrun_requests_total", "sandboxrun_handler_seconds_bucket",
        "sandboxrun_handler_seconds_sum", "sandboxrun_handler_seconds_count", "sandboxrun_wait_seconds_bucket",
        "sandboxrun_wait_seconds_sum", "sandboxrun_wait_seconds_count", "sandboxrun_oldest_waiting_seconds",
        "sandboxrun_oldest_handling_seconds", "sandboxrun_lag", "sandboxrun_pending", "sandboxrun_dead",
        "sandboxrun_denials_total", "sandboxrun_restarts_total", "sandboxrun_lease_age_seconds",
        "sandboxrun_redis_up", "sandboxrun_build_info",
    }  # fmt: skip
    labels = {label for _, pairs in found for label, _ in pairs}
    assert labels == {"type", "id", "code", "kind", "reason", "le", "version"}
    worker = (("id", "1"), ("type", "greeter"))
    assert found["sandboxrun_up", worker] == 1
    assert found["sandboxrun_requests_total", (("code", "500"), *worker)] == 2
    assert found["sandboxrun_restarts_total", (*worker[:1], ("reason", "failed"), *worker[1:])] == 3
    assert found["sandboxrun_lag", (("type", "greeter"),)] == 5


def test_buckets_add_up():
    found = series(with_workers(WORKER))
    buckets = [value for (name, _), value in found.items() if name == "sandboxrun_handler_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert buckets[-1] == sum(HEALTH.handler.counts)


HOSTILE = [
    'a"b',
    "a\\b",
    "a\nb",
    'x"} 1\nsandboxrun_up{type="y',
    "\x00\x1b[2J",
    "\u202eevil",
    "\ud800",
    "<b>",
    "x" * 10_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("openmetrics", [False, True])
def test_hostile_text_makes_no_series_and_no_line(text, openmetrics):
    worker = replace(
        WORKER,
        id=text,
        last_reason=text,
        version=text,
        restarts_by=((text, 1),),
        denials=(Denied(text, text, text, 1),),
    )
    normal = series(with_workers(WORKER), openmetrics=openmetrics)
    found = series(replace(with_workers(worker), version=text), openmetrics=openmetrics)
    assert sorted(name for name, _ in found) == sorted(name for name, _ in normal)
    for _, labels in found:
        assert all(value.isprintable() and len(value) <= metrics.LABEL_MAX_CHARS for _, value in labels)


def test_codes_reasons_and_kinds_are_bounded():
    worker = replace(
        WORKER,
        health=replace(HEALTH, codes=tuple((code, 1) for code in range(1000))),
        restarts_by=tuple((f"reason {n}", 1) for n in range(100)),
        denials=tuple(Denied(f"kind{n}", "x", "x", 1) for n in range(50)),
    )
    found = series(with_workers(worker))
    other = {name: value for (name, labels), value in found.items() if "other" in dict(labels).values()}
    assert other["sandboxrun_requests_total"] == 1000 - len(metrics.CODES)
    assert (other["sandboxrun_restarts_total"], other["sandboxrun_denials_total"]) == (100, 50)
    assert len([name for name, _ in found if name == "sandboxrun_requests_total"]) == len(metrics.CODES) + 1


def test_the_series_of_an_id_end_with_it():
    ids = [
        {dict(labels)["id"] for _, labels in series(s) if dict(labels).get("id")}
        for s in (STATUS, with_workers(WORKER))
    ]
    assert ids == [{"1", "2"}, {"1"}]


def test_a_stopped_worker_is_not_down():
    stopped, failing = replace(WORKER, state="stopped"), replace(WORKER, id="2", state="failing")
    up = {
        dict(labels)["id"]: value
        for (name, labels), value in series(with_workers(stopped, failing)).items()
        if name == "sandboxrun_up"
    }
    assert up == {"2": 0}


def test_a_figure_that_redis_does_not_say_has_no_series():
    status = replace(STATUS, types=(replace(STATUS.types[0], lag=None, oldest_waiting=None),))
    names = {name for name, _ in series(status)}
    assert not names & {"sandboxrun_lag", "sandboxrun_oldest_waiting_seconds"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_0(value: Any):
    found = series(with_workers(replace(WORKER, lease_age=value)))
    assert [v for (name, _), v in found.items() if name == "sandboxrun_lease_age_seconds"] == [0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.3", False),
        ("application/openmetrics-text;q=x", False),
        ("*/*", False),
        ("", False),
        (",;=,;q=", False),
    ],
)
def test_the_format_is_the_one_that_the_scraper_prefers(accept, expected):
    assert is_openmetrics(accept) is expected


def test_the_text_file_is_written_whole_and_readable(tmp_path: Path):
    path = tmp_path / "sandboxrun.prom"
    path.write_text("old")
    write_textfile(str(path), STATUS, clock=0)
    assert path.read_text() == render(STATUS, clock=0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OSError):
        write_textfile(str(tmp_path / "missing/x.prom"), STATUS, clock=0)


def test_every_metric_has_its_help():
    assert all(metric.help.endswith(".") and metric.name.startswith("sandboxrun_") for metric in METRICS)
