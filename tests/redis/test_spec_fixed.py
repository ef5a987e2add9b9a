"""sandboxrun test: a clock that stands still, random numbers that are the same each time, and a Redis that is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from runner import Done, Runner

CLOCK, SECONDS = "2031-01-31T12:00:00+02:00", 1927620000
SCRIPT = (Path(__file__).parent / "workers/fixed_clock.py").read_text()
BLOCK = '# /// script\n# requires-python = ">=3.11"\n# dependencies = []\n# ///\n'
TIMES = {
    "started": SECONDS,
    "wall": SECONDS,
    "nanos": SECONDS * 10**9,
    "now": "2031-01-31T10:00:00+00:00",
    "today": "2031-01-31",
    "remaining": 10,
}
COUNTING = """
from sandboxrun import worker
r = worker.connect()
@worker.handler
def handle(request):
    r.incr("count:all")
    r.xadd("other:req:x", {"a": 1})
    return {}
worker.run()
"""


@pytest.fixture
def home(tmp_path: Path) -> Runner:
    return Runner("", tmp_path)


@pytest.fixture
def fixed(home: Runner) -> Callable[..., Path]:
    """A folder with a spec and the worker."""

    def make(*tests: dict[str, Any], script: str = SCRIPT, **spec: Any) -> Path:
        folder = home.home / "t"
        folder.mkdir(exist_ok=True)
        (folder / "worker.py").write_text(script)
        named = [{"name": f"test {number}", **test} for number, test in enumerate(tests)]
        (folder / "spec.json").write_text(json.dumps({"type": "t", **spec, "tests": named}))
        return folder

    return make


def update(home: Runner) -> list[dict[str, Any]]:
    """The replies that the tests expect once they were updated."""
    done = home("test", "t", "--update")
    assert done.code == 0, done.out
    return [test["reply"] for test in json.loads((home.home / "t/spec.json").read_text())["tests"]]


@pytest.mark.parametrize("script", [SCRIPT, BLOCK + SCRIPT], ids=["", "block"])
def test_a_clock_stands_still_for_all_that_a_worker_asks(home: Runner, fixed: Callable[..., Path], script: str) -> None:
    fixed({"reply": TIMES}, {"reply": TIMES}, script=script, clock=CLOCK)
    done = home("test", "t")
    assert (done.code, done.out.splitlines()[-1][:8]) == (0, "2 passed"), done.out


def test_a_test_may_have_a_clock_of_its_own(home: Runner, fixed: Callable[..., Path]) -> None:
    early = {"clock": "1999-12-31T23:59:59Z", "reply": {"started": 946684799, "today": "1999-12-31", "remaining": 10}}
    fixed({"reply": TIMES}, early, {"reply": TIMES}, clock=CLOCK)
    done = home("test", "t")
    assert done.code == 0, done.out


def test_numbers_are_the_same_in_each_run_and_whatever_was_asked_before(
    home: Runner, fixed: Callable[..., Path]
) -> None:
    wrong = {"reply": {"uuid": "x", "random": [], "first": 0}}
    fixed(wrong, wrong, {**wrong, "seed": 8}, seed=7)
    first, second, third = update(home)
    assert first == second
    assert first["uuid"] != third["uuid"]
    assert first["random"] != third["random"]
    assert home("test", "t", "-k", "test 1").code == 0
    assert home("test", "t").code == 0


def test_async_handlers_have_the_clock_and_the_numbers_too(home: Runner, fixed: Callable[..., Path]) -> None:
    wrong = {"reply": {"random": 0, "wall": 0}}
    script = SCRIPT.replace('"slow"', '"t"').replace("@worker.handler\n", "@worker.handler('other')\n")
    fixed(wrong, wrong, script=script, clock=CLOCK, seed=7)
    first, second = update(home)
    assert first == second
    assert first["wall"] == SECONDS


def test_without_them_time_passes_and_numbers_differ(home: Runner, fixed: Callable[..., Path]) -> None:
    wrong = {"reply": {"uuid": "x", "wall": 0}}
    fixed(wrong, wrong)
    first, second = update(home)
    assert first["uuid"] != second["uuid"]
    assert first["wall"] < second["wall"]


@pytest.mark.parametrize(
    "clock", ["", "yesterday", "2031-01-31T12:00:00", "1969-12-31T00:00:00Z", "2031-02-31T00:00:00Z"]
)
def test_a_clock_that_is_no_time_is_refused(home: Runner, fixed: Callable[..., Path], clock: str) -> None:
    folder = fixed({"clock": clock})
    expected = "expected a time from 1970 on with its zone, as in 2026-01-31T12:00:00Z"
    assert refused(home) == f'error: {folder}/spec.json: tests[0].clock is "{clock}": {expected}'
    fixed({}, clock=clock)
    assert refused(home) == f'error: {folder}/spec.json: clock is "{clock}": {expected}'
    done = home("t", "1", f"--clock={clock}")
    assert (done.code, done.err.strip()) == (64, f"error: --clock is {clock!r}: {expected}")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_not_all_libraries_take_is_refused(home: Runner, fixed: Callable[..., Path], seed: int) -> None:
    fixed({}, seed=seed)
    assert "spec.json: seed: " in refused(home)
    done = home("t", "1", f"--seed={seed}")
    assert (done.code, done.err.strip()) == (
        64,
        f"error: --seed is {seed}: expected a whole number from 0 to 4294967295",
    )


def refused(home: Runner) -> str:
    done = home("test", str(home.home / "t"))
    assert done.code == 65, done.out
    return done.err.strip()


# --- a Redis that is given


def run_on(home: Runner, url: str, *folders: str) -> Done:
    return home("test", *folders, "--redis", url)


@pytest.fixture
def ninth(redis_url: str, r: redis.Redis) -> str:
    return f"{redis_url}/9"


def test_a_given_database_is_as_empty_as_before(
    home: Runner, fixed: Callable[..., Path], r: redis.Redis, ninth: str
) -> None:
    r.set("count:all", 40)  # in database 0
    fixed(
        {"after": {"count:all": 1, "other:req:x": "$any"}},
        {"after": {}, "reply": {"missing": 1}},
        script=COUNTING,
        grants={"allowRedis": "count:*,other:*"},
    )
    done = run_on(home, ninth, "t")
    assert (done.code, done.out.splitlines()[-1][:18]) == (1, "1 passed, 1 failed"), done.out
    with redis.Redis.from_url(ninth) as other:
        assert other.dbsize() == 0
    assert r.get("count:all") == "40"
    assert r.keys() == ["count:all"]


def test_a_worker_that_ends_leaves_nothing_in_a_given_database(
    home: Runner, fixed: Callable[..., Path], r: redis.Redis, ninth: str
) -> None:
    fixed(
        {},
        script=COUNTING.replace("    return {}", "    import os; os._exit(3)"),
        grants={"allowRedis": "count:*,other:*"},
    )
    assert run_on(home, ninth, "t").code == 1
    with redis.Redis.from_url(ninth) as other:
        assert other.dbsize() == 0


def test_a_database_with_keys_is_refused_and_left_as_it_is(
    home: Runner, fixed: Callable[..., Path], r: redis.Redis, ninth: str
) -> None:
    fixed({})
    with redis.Redis.from_url(ninth, decode_responses=True) as other:
        other.set("a", 1)
        done = run_on(home, ninth, "t")
        assert done.code == 75
        fault, hint = done.err.strip().splitlines()
        assert fault.endswith("has 1 key: expected an empty one, because tests remove all that is there")
        assert hint.startswith("hint: sandboxrun test FOLDER --redis redis://")
        assert hint.endswith("/1")
        assert other.keys() == ["a"]


def test_a_database_of_other_tests_is_refused(
    home: Runner, fixed: Callable[..., Path], r: redis.Redis, ninth: str
) -> None:
    fixed({})
    with redis.Redis.from_url(ninth, decode_responses=True) as other:
        other.set("sandboxrun:test", 1)
        done = run_on(home, ninth, "t")
        assert (done.code, "is used by other tests" in done.err) == (75, True)
        assert other.keys() == ["sandboxrun:test"]
