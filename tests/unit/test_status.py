"""The status that an agent serves: it comes back from JSON as it was, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from agent_status import HEALTH, STATUS, WORKER, histogram

from sandboxrun.fleet import status as fleet
from sandboxrun.fleet.status import AgentStatus
from sandboxrun.records import replace


def test_a_status_comes_back_from_json_as_it_was():
    assert fleet.parse(fleet.as_json(STATUS)) == STATUS


def test_hostile_text_comes_back_and_is_cut():
    worker = replace(WORKER, last_reason="\ud800\x00\n" + "x" * 5000, id='"<script>')
    data = fleet.as_json(replace(STATUS, types=(replace(STATUS.types[0], workers=(worker,)),)))
    (read,) = fleet.parse(data).workers
    assert read.id == '"<script>'
    assert read.last_reason == worker.last_reason[: fleet.TEXT_MAX_CHARS]


def test_numbers_that_json_has_not_become_0():
    data = fleet.as_json(replace(STATUS, since=math.nan))
    assert fleet.parse(data).since == 0.0


def test_a_field_of_a_later_version_is_left_out():
    value = json.loads(fleet.as_json(STATUS))
    value["types"][0]["workers"][0]["mood"] = "good"
    assert fleet.parse(json.dumps(value).encode()) == STATUS


def changed(path: str, value: Any) -> bytes:
    whole = json.loads(fleet.as_json(STATUS))
    place, *names = whole, *path.split(".")
    for name in names[:-1]:
        place = place[int(name) if name.isdigit() else name]
    last: Any = int(names[-1]) if names[-1].isdigit() else names[-1]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", None, "status: name is missing"),
        ("name", 5, "status.name: expected a text"),
        ("host", "x" * 2000, "status.host: expected a text of at most 1000"),
        ("redis_up", 1, "status.redis_up: expected true or false"),
        ("most", True, "status.most: expected a whole number"),
        ("most", 1 << 70, "status.most: expected a whole number"),
        ("since", "now", "status.since: expected a number"),
        ("types", {}, "status.types: expected a list"),
        ("types", [[]] * 2000, "status.types: expected a list of at most 1000"),
        ("types.0", [], r"status.types\[0\]: expected an object"),
        ("types.0.workers.0.state", "happy", r"workers\[0\].state: expected one of"),
        ("types.0.workers.0.restarts_by", [["a"]], r"restarts_by\[0\]: expected two values"),
        ("types.0.workers.0.health.codes", [["a", 1]], r"codes\[0\]: expected a whole number"),
        ("types.0.workers.0.health.handler.sum", math.inf, "Infinity is no number of JSON"),
    ],
)
def test_what_is_no_status_is_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        fleet.parse(changed(path, value))


@pytest.mark.parametrize("data", [b"", b"null", b"[" * 100_000, b"\xff", b"{}", b'{"name":' * 50_000])
def test_garbage_is_no_status(data):
    with pytest.raises(ValueError):
        fleet.parse(data)


def test_a_status_that_is_too_large_is_not_parsed():
    with pytest.raises(ValueError, match="more than 8 MiB"):
        fleet.parse(b" " * (fleet.STATUS_MAX_BYTES + 1))


def test_rates_count_anew_after_a_restart():
    def handled(count: int) -> AgentStatus:
        worker = replace(WORKER, health=replace(HEALTH, handled=count))
        return replace(STATUS, types=(replace(STATUS.types[0], workers=(worker,)),))

    assert fleet.rates(handled(10), handled(30), 2.0) == {("greeter", "1"): 10.0}
    assert fleet.rates(handled(10), handled(4), 2.0) == {("greeter", "1"): 2.0}
    assert fleet.rates(STATUS, STATUS, 0) == {}


def test_histograms_of_a_type_are_added():
    assert fleet.merged([histogram(0.002), histogram(0.2, 0.2)]) == histogram(0.002, 0.2, 0.2)
    assert fleet.merged([]).quantile(0.5) is None


def test_errors_are_replies_of_400_and_more():
    assert fleet.errors(WORKER) == 2
